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
#ifdef ENDOR_ARM
    /* Part of every 64-bit ARM. */
    case ENDOR_NEON:
        return 1;
#endif
    default:
        return 0;
    }
}

endor_target endor_cpu_best(void) {
    static const endor_target by_speed[] = {ENDOR_AVX512, ENDOR_AVX2, ENDOR_NEON};
    for (unsigned i = 0; i < sizeof by_speed / sizeof by_speed[0]; i++)
        if (endor_cpu_has(by_speed[i])) return by_speed[i];
    return ENDOR_SCALAR;
}
