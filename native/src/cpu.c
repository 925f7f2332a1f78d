/* Which instructions this machine has. */
#include "cpu.h"

int endor_cpu_has(endor_target target) {
    switch (target) {
    case ENDOR_SCALAR:
        return 1;
#ifdef ENDOR_X86
    /* The compiler's own detection reads CPUID and XGETBV: it also asks whether the system saves the registers. */
    case ENDOR_AVX2:
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt");
    case ENDOR_AVX512:
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi2") &&
               __builtin_cpu_supports("popcnt");
#endif
    default:
        return 0;
    }
}
