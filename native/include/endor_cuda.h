/* The Endor decoder for NVIDIA GPUs: parts in device memory to dense elements in device memory (spec 8, rules B and E).
 *
 * The kernels lie in the library; the driver's own library is opened at run time, so that one build serves machines with
 * and without a GPU, and needs no CUDA toolkit. After endor_cuda_open nothing is allocated and nothing waits: what is asked for
 * goes onto the caller's stream. The only state is the primary context of each device that was used, which is retained until
 * endor_cuda_close. The caller's current context is the same after a call as before it. All functions may be called by several
 * threads.
 *
 * Whatever the bytes of the parts are, even if they change meanwhile, nothing is read or written outside of the buffers of a
 * job. Buffers need no alignment; it is fast where parts and output begin at multiples of 16 bytes, as they do if each part is
 * where a canonical file has it, behind a base that is a multiple of 64.
 */
#ifndef ENDOR_CUDA_H
#define ENDOR_CUDA_H

#include "endor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The driver, opened, and the kernels in it. */
typedef struct endor_cuda endor_cuda;

/* A range of blocks of one tensor to be decoded. Part and output pointers are device addresses, or host addresses that
 * the device can use. Every size is the caller's statement of how many bytes there are behind a pointer, and has to be what
 * endor_sizes says; a pointer may be NULL only where that is 0. What is written (the output, the status word) must not overlap
 * what is read, nor the output of another job of the same call. */
typedef struct endor_cuda_job {
    endor_tensor tensor;
    endor_parts parts;
    uint64_t first, stop; /* blocks first .. stop - 1; 0 and endor_blocks(numel) for all */
    void *out;            /* the elements of these blocks; NULL: they are only checked */
    size_t out_size;      /* exactly what they need; 0 if out is NULL */
    uint64_t *status;     /* a device address, a multiple of 8, of a word that tells faults; NULL: they are not told */
} endor_cuda_job;

/* So many tensors of one size of elements go into one launch. */
#define ENDOR_CUDA_JOBS 32u

/* In the place of a device's number: the context that is current for the calling thread; where none is, the primary context of
 * the device that the first buffer of the jobs lies on. */
#define ENDOR_CUDA_CURRENT (-1)

/* Opens the driver's library: `driver`, or, if that is NULL, the system's. *opened is to be closed.
 *
 * ENDOR_TARGET: there is no driver, no device, or this build has no kernels; endor_cuda_close of NULL is allowed. Whether the
 * kernels run on a device is known when endor_cuda_load has loaded them there. */
ENDOR_API endor_status endor_cuda_open(const char *driver, endor_cuda **opened);

/* How many devices the driver has; their numbers begin with 0. */
ENDOR_API int endor_cuda_devices(const endor_cuda *cuda);

/* The number of the device whose context is current for the calling thread, or ENDOR_CUDA_CURRENT where none is. */
ENDOR_API int endor_cuda_current(const endor_cuda *cuda);

/* Loads the kernels into the primary context of a device, or, for ENDOR_CUDA_CURRENT, into the current context. Otherwise the
 * first launch there does it, which may then wait for the device and is not to be captured into a graph.
 *
 * ENDOR_ARGUMENT: there is no such device. ENDOR_DRIVER: *result is the driver's CUresult; 209 where this build has no kernels
 * for such a device. */
ENDOR_API endor_status endor_cuda_load(endor_cuda *cuda, int device, int *result);

ENDOR_API void endor_cuda_close(endor_cuda *cuda);

/* Bytes of the kernels in this build; 0 if it was built without nvcc. */
ENDOR_API size_t endor_cuda_kernels_size(void);

/* Launches all jobs on a stream (a CUstream or cudaStream_t; NULL is the default one): one kernel for every ENDOR_CUDA_JOBS of
 * those that have elements of one size. `device` is the number of the device that the buffers and the stream are on, whose
 * primary context is used as by the CUDA runtime; or ENDOR_CUDA_CURRENT. The jobs themselves are copied; what they point to has
 * to stay until the stream has got there. May be captured into a graph.
 *
 * The rules are checked as endor_decode checks them. A fault is told in the job's status word, which has to be 0 before:
 * endor_cuda_fault reads it. Several jobs may share a word; the fault of the lowest block then remains. What is in `out` after
 * a fault is of no use; a job without a status word is for parts that were checked before.
 *
 * ENDOR_ARGUMENT: a job makes no sense, as for endor_decode: a size differs from what endor_sizes says, a buffer that has to be
 * there is NULL or passes the end of the address space, the output or the status word of a job overlaps another of its buffers,
 * a status word is not aligned; or there is no such device. Nothing was launched.
 * ENDOR_DRIVER: the driver refused; *result is its CUresult, and some of the launches may have been made. */
ENDOR_API endor_status endor_cuda_decode(
    endor_cuda *cuda, int device, const endor_cuda_job *jobs, size_t count, void *stream, int *result);

/* What a status word says: ENDOR_OK, or the rule that the reference decoder would find broken first; and the block that breaks
 * it, or UINT64_MAX where it is not one block but what lies before the first or behind the last. ENDOR_ARGUMENT: no kernel has
 * written this word. */
ENDOR_API endor_status endor_cuda_fault(uint64_t word, uint64_t *block);

/* What the driver calls a result; never NULL. */
ENDOR_API const char *endor_cuda_message(const endor_cuda *cuda, int result);

#ifdef __cplusplus
}
#endif
#endif
