/* The scalar target: plain C, for every machine, and what the others are compared with. */
#include "shuffle.h"

#define TARGET
#define KERNELS endor_scalar
#define WORDS "scalar_words.h"
#define WIDEST ENDOR_STREAM_ALIGNMENT
#define FENCE() ((void)0)
#define ONES(word) (ones_up_to(word) >> 56)

#define ELEMENT(size) ELEMENT_(size)
#define ELEMENT_(size) element_##size
typedef uint8_t element_1;
typedef uint16_t element_2;
typedef uint32_t element_4;
typedef uint64_t element_8;

/* Not every processor has an instruction for it: the number of 1 bits of each byte, and of all bytes up to each. */
INLINE uint64_t ones_up_to(uint64_t word) {
    word -= word >> 1 & UINT64_C(0x5555555555555555);
    word = (word & UINT64_C(0x3333333333333333)) + (word >> 2 & UINT64_C(0x3333333333333333));
    word = (word + (word >> 4)) & UINT64_C(0x0F0F0F0F0F0F0F0F);
    return word * UINT64_C(0x0101010101010101);
}

#include "target.h"
