/* What the files of this program share: how a call fails, JSON, open files, checkpoints, SHA-256.
 *
 * Every function that can fail returns a bool, and if it is false, says why in a `failure`.
 */
#ifndef ENDOR_READ_H
#define ENDOR_READ_H

#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64

#include <endor.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "Endor files are read on little-endian machines only"
#endif

#define MAX_INTEGER ((UINT64_C(1) << 53) - 1) /* J-5 */
#define MAX_TEXT UINT64_C(100000000)          /* C-2, and the longest index that is read */
#define MAX_DEPTH 16                          /* J-4 */
#define MAX_RANK 64                           /* C-8 */

/* -- failure.c: how a call fails. The results are also the exit statuses of the program. */

typedef enum result { ACCEPT = 0, REJECT = 1, UNSUPPORTED = 2 } result;

typedef struct failure {
    result result;
    char rule[8];   /* "B-6"; empty if none */
    char *tensor;   /* a stored name, see below; NULL if none */
    int64_t offset; /* in the file; -1 if none */
    char message[200];
} failure;

#define NOWHERE (-1)

/* Both return false, so that `return reject(...)` is how a check ends. */
bool reject(
    failure *f, const char *rule, const char *tensor, int64_t offset, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
bool unsupported(failure *f, const char *tensor, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
bool no_memory(failure *f);
void failure_clear(failure *f);

/* Text from a file as it goes into a message: short, and escaped (S-4). */
typedef struct shown {
    char text[72];
} shown;
shown show(const char *text);

/* Memory of `size` bytes, never NULL for 0 bytes; NULL if there is not so much. */
void *allocate(uint64_t size);
void *allocate_array(size_t count, size_t size);

/* -- json_rules.c: JSON as section 4 wants it.
 *
 * jansson builds the trees. It admits no NUL in the name of a member, and C strings do not either,
 * so a name is *stored* with U+0000 as the bytes 1 1 and U+0001 as the bytes 1 2. That keeps the
 * order of names, and what a name begins and ends with; so stored names are compared, sorted and
 * extended like any C string.
 */

/* Bytes that grow. Once memory has run out, nothing more is put, and `failed` says so. */
typedef struct buffer {
    char *data;
    size_t size, room;
    bool failed;
} buffer;

void put_bytes(buffer *b, const char *bytes, size_t size);
void put_text(buffer *b, const char *text);
void put_number(buffer *b, uint64_t number);

/* Canonical JSON text of a string, and of a stored name. */
void put_string(buffer *b, const char *bytes, size_t size);
void put_name(buffer *b, const char *stored);

void buffer_free(buffer *b);

char *name_store(const char *bytes, size_t size); /* to be freed; NULL without memory */
json_t *name_json(const char *stored);            /* the name as a JSON string */

/* To be called before jansson is used, and again after it has run out of memory; and whether it
 * has. */
void json_start(void);
bool json_exhausted(void);

/* Where the first byte lies that is not part of well-formed UTF-8; `size` if there is none. */
size_t utf8_fault(const char *text, size_t size);

/* Checks an object by the rules J and builds its tree; *end is where it ended. The text is UTF-8.
 * The names of its members are stored names. A number that is not as J-5 wants it comes out as -1,
 * and an array of more than 65 items with some of those after the 65th left out: nothing that has a
 * meaning is so long. */
json_t *json_read(const char *text, size_t size, size_t *end, failure *f);

/* The same for a text that is one object with white space around it. */
json_t *json_read_all(const char *text, size_t size, failure *f);

/* Whether a text is a JSON object for whoever writes config.json (K-8): only J-1 is asked of it,
 * and not all of that. */
bool json_check_lax(const char *text, size_t size, failure *f);

/* -- endor_file.c: one file: rules C, M, T, B, E and D. */

typedef struct dtype {
    const char *name;
    unsigned bits;
    unsigned exponent, mantissa; /* bits of a float that can be split; otherwise 0 */
} dtype;

/* A tensor that the header lists. */
typedef struct physical {
    const char *name;   /* stored; the first member, see lower_bound */
    const dtype *dtype; /* NULL if it is not in the table */
    json_t *dtype_name, *shape;
    uint64_t begin, end; /* in the file */
    size_t place;        /* in the header */
    bool belongs;        /* to an encoded tensor */
} physical;

/* The parts that an encoded tensor may have, in the order of B-2. */
enum { VALUES, BITMAP, INDEX, BASES, PATCHES, PARTS };

extern const char *const part_suffixes[PARTS];

/* What a part has to be. */
typedef struct part {
    const char *dtype; /* NULL: the encoding does not have this part */
    unsigned rank;
    uint64_t shape[2];
    uint64_t size; /* in bytes */
} part;

/* A tensor that the user sees. */
typedef struct tensor {
    const char *name;        /* stored; the first member */
    const char *unsupported; /* why; NULL if it can be decoded */
    const dtype *dtype;
    json_t *dtype_name, *shape;
    bool encoded;
    endor_tensor form;            /* how it is encoded; of a plain tensor, numel alone */
    const char *digest;           /* NULL if there is none */
    const physical *parts[PARTS]; /* of a plain tensor, itself alone */
} tensor;

typedef struct file {
    int descriptor;
    uint64_t size, data;     /* its length, and where its data section begins */
    json_t *header, *endor;  /* they own all names and shapes */
    json_t *metadata;        /* NULL if there is none */
    const char *unsupported; /* why the file as a whole is; NULL if it is not */
    physical *physicals;     /* by name */
    size_t physical_count;
    tensor *tensors; /* the encoded ones by name, then the plain ones by name */
    size_t tensor_count, encoded_count;
} file;

/* Takes dense bytes, piece after piece. */
typedef void sink(void *context, const void *bytes, size_t size);

/* Checks all that can be checked before any data is read. Whatever it returns, the file wants to be
 * closed. */
bool file_open(file *opened, const char *path, failure *f);
void file_close(file *opened);
bool file_read(const file *opened, uint64_t begin, uint64_t size, void *to, failure *f);

/* Checks and decodes the elements start .. stop - 1, reading what they need and no more. What the
 * sink got is right only if this returns true. */
bool tensor_decode(
    const file *from, const tensor *t, uint64_t start, uint64_t stop, sink *take, void *context,
    failure *f);

/* The same for the whole tensor. With `digests`, its digest is checked too, or *unverified is set
 * (D-4). */
bool tensor_decode_all(
    const file *from, const tensor *t, bool digests, bool *unverified, sink *take, void *context,
    failure *f);

/* Buffers for the parts, as long as these are in the file; zero at first. Those that the encoding
 * does not have are of size 0. Whatever it returns, what is allocated wants to be freed. */
typedef struct stored {
    uint8_t *bytes[PARTS];
    uint64_t sizes[PARTS];
} stored;

bool stored_allocate(stored *s, const tensor *t, failure *f);
void stored_free(stored *s);

/* What the digest of a tensor has to be (D-2). False without memory. */
bool tensor_digest(const tensor *t, const stored *parts, uint64_t *digest);

/* What the parts of an encoded tensor have to be (B-2). Its counts are below 2^57. */
void part_layout(const tensor *t, part parts[PARTS]);

/* The bits of a code: 1 to this; 0 if the values of a dtype cannot be split (M-8). */
unsigned max_width(const dtype *type);

/* An encoding of a tensor: its positions and values, with the widths that the dtype gives; kept,
 * width and the counts are 0. */
endor_tensor form_of(const tensor *t, uint32_t positions, uint32_t values);

/* A shape that has been checked, as canonical JSON text. */
void put_shape(buffer *b, const json_t *shape);

/* The entry of a tensor as canonical JSON text; without the member `digest` if that is NULL. */
void put_entry(buffer *b, const tensor *t, const uint64_t *digest);

bool string_is(const json_t *value, const char *text);
bool starts_with(const char *name, const char *key, const char *suffix); /* with key + suffix */
int compare_names(const void *a, const void *b); /* for arrays of what begins with a name */

/* The first of `count` things sorted by name, `stride` bytes apart, whose name is not below key +
 * suffix. */
size_t lower_bound(
    const void *things, size_t count, size_t stride, const char *key, const char *suffix);

/* Whether one of these names is key.endor or begins with key.endor. (T-1, W-7). */
bool has_below(const void *things, size_t count, size_t stride, const char *key);

/* -- checkpoint.c: a file, or a directory of files (rules K). */

typedef struct checkpoint {
    file *files;
    size_t count;
} checkpoint;

bool checkpoint_open(checkpoint *opened, const char *path, failure *f);
void checkpoint_close(checkpoint *opened);

/* -- encode.c: the canonical file (rules W). */

/* Which values the encoding of a tensor may have (W-10); SPLIT_VALUES leaves raw ones to the dtypes
 * that have no others. */
typedef enum choice { ANY_VALUES, RAW_VALUES, SPLIT_VALUES } choice;

bool encode_file(const char *input, const char *output, choice values, failure *f);

/* -- sha256.c */

typedef struct sha256 {
    uint32_t state[8];
    uint64_t size; /* of all that was added, in bytes */
    uint8_t pending[64];
} sha256;

void sha256_start(sha256 *hash);
void sha256_add(void *hash, const void *bytes, size_t size); /* a sink */
void sha256_end(sha256 *hash, char hex[65]);

#endif
