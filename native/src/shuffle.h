/* Where elements go, looked up by their bits: for targets with a shuffle of 16 bytes, AVX2 and NEON, and for none.
 *
 * A cluster is what goes through one shuffle: 16 bytes of elements, but no more than 8 elements, or the tables would be
 * too large. For all the bits that a cluster can have, the tables say which byte of the source goes to each byte of the
 * result; ENDOR_NONE for none. Shuffles make it 0, and its low half is a place behind 8 elements.
 */
#ifndef ENDOR_SHUFFLE_H
#define ENDOR_SHUFFLE_H

#include "kernels.h"

#define ENDOR_NONE 0x88

/* Elements of a cluster, by their size. */
#define CLUSTER_1 8
#define CLUSTER_2 8
#define CLUSTER_4 4
#define CLUSTER_8 2

/* For each size: by bits, then by byte of the result. */
typedef struct shuffles {
    uint8_t of_1[256][8], of_2[256][16], of_4[16][16], of_8[4][16];
} shuffles;

extern const shuffles endor_expanding, endor_compressing;

#endif
