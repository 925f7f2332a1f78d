/* The one place that knows CPUs. */
#ifndef ENDOR_CPU_H
#define ENDOR_CPU_H

#include "endor.h"

/* Whether the processor has a target's instructions, and the operating system saves its registers. */
int endor_cpu_has(endor_target target);

/* The fastest of those that it has. Asked anew each time: a few loads, and no state to share between threads. */
endor_target endor_cpu_best(void);

#endif
