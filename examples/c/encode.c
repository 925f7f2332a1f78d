/* The canonical Endor file of the tensors of a plain safetensors file (section 10, rules W). */
#include "endor_read.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_WRITTEN_HEADER 25000000 /* W-1 */
#define PIECE ((uint64_t)1 << 20)

/* A tensor to be written. */
typedef struct item {
    tensor tensor; /* with the nnz that was counted */
    uint64_t size; /* of its dense bytes */
    bool encode;
    uint64_t sizes[3]; /* of its parts */
    uint64_t digest;
} item;

typedef struct job {
    file in;
    item *items;     /* by name, as the tensors of the file */
    item **in_order; /* as their data is written */
    size_t count;
} job;

/* -- Which tensors to encode */

static bool count_stored(const job *j, item *t, failure *f) {
    void *piece = allocate(PIECE);
    bool good = piece != NULL || no_memory(f);
    for (uint64_t at = 0; good && at < t->size; at += PIECE) {
        uint64_t size = t->size - at < PIECE ? t->size - at : PIECE, nnz = 0;
        good = file_read(&j->in, t->tensor.parts[0]->begin + at, size, piece, f);
        if (!good) break;
        endor_status status =
            endor_count(ENDOR_AUTO, piece, (size_t)size, t->tensor.dtype->bits / 8, &nnz);
        t->tensor.nnz += nnz;
        if (status != ENDOR_OK)
            good = unsupported(f, t->tensor.name, "libendor: status %d", (int)status);
    }
    free(piece);
    return good;
}

/* W-7 */
static bool choose(const job *j, item *t, failure *f) {
    const tensor *all = j->in.tensors;
    if (t->tensor.dtype->bits % 8 != 0) return true;
    if (has_below(all, j->count, sizeof all[0], t->tensor.name)) return true;
    if (!count_stored(j, t, f)) return false;
    uint64_t itemsize = t->tensor.dtype->bits / 8;
    part_sizes(t->tensor.numel, t->tensor.nnz, itemsize, t->sizes);
    bool own_shape =
        json_array_size(t->tensor.shape) == 1 && t->tensor.numel == t->sizes[0] / itemsize;
    uint64_t sum = t->sizes[0] + t->sizes[1] + t->sizes[2];
    t->encode = !own_shape && 100 * (sum + 512) <= 95 * t->size;
    return true;
}

/* W-5: encoded tensors as they were given, then plain ones by falling bits. */
static int compare_items(const void *a, const void *b) {
    const item *x = *(const item *const *)a, *y = *(const item *const *)b;
    if (x->encode != y->encode) return x->encode ? -1 : 1;
    unsigned p = x->tensor.dtype->bits, q = y->tensor.dtype->bits;
    if (!x->encode && p != q) return p > q ? -1 : 1;
    const physical *v = x->tensor.parts[0], *w = y->tensor.parts[0];
    if (v->begin != w->begin) return v->begin < w->begin ? -1 : 1;
    if (v->end != w->end) return v->end < w->end ? -1 : 1;
    return v->place < w->place ? -1 : v->place > w->place;
}

static bool prepare(job *j, failure *f) {
    j->count = j->in.tensor_count;
    j->items = allocate_array(j->count, sizeof j->items[0]);
    j->in_order = allocate_array(j->count, sizeof j->in_order[0]);
    if (j->items == NULL || j->in_order == NULL) return no_memory(f);
    for (size_t i = 0; i < j->count; i++) {
        item *t = j->in_order[i] = &j->items[i];
        t->tensor = j->in.tensors[i];
        t->size = t->tensor.parts[0]->end - t->tensor.parts[0]->begin;
        if (t->tensor.unsupported)
            return unsupported(f, t->tensor.name, "%s", t->tensor.unsupported);
        if (!choose(j, t, f)) return false;
    }
    qsort(j->in_order, j->count, sizeof j->in_order[0], compare_items);
    return true;
}

/* -- The header */

static void put_endor(buffer *b, const job *j) {
    bool first = true;
    put_text(b, "{\"tensors\":{");
    for (size_t i = 0; i < j->count; i++) {
        const item *t = &j->items[i];
        if (!t->encode) continue;
        if (!first) put_text(b, ",");
        first = false;
        put_name(b, t->tensor.name);
        put_text(b, ":");
        put_entry(b, &t->tensor, &t->digest);
    }
    put_text(b, "},\"version\":\"1.0\"}");
}

typedef struct member {
    const char *name; /* the first member, see compare_names */
    const char *text;
    size_t size;
} member;

/* W-3 */
static void put_metadata(buffer *b, const job *j) {
    buffer endor = {0};
    put_endor(&endor, j);
    member *members = allocate_array(json_object_size(j->in.metadata) + 2, sizeof *members);
    if (endor.failed || members == NULL) {
        b->failed = true;
    } else {
        size_t count = 0;
        members[count++] = (member){"endor", endor.data, endor.size};
        if (!json_object_get(j->in.metadata, "format"))
            members[count++] = (member){"format", "pt", 2};
        const char *name;
        json_t *text;
        json_object_foreach(j->in.metadata, name, text)
            members[count++] = (member){name, json_string_value(text), json_string_length(text)};
        qsort(members, count, sizeof *members, compare_names);
        for (size_t i = 0; i < count; i++) {
            put_text(b, i > 0 ? "," : "{");
            put_name(b, members[i].name);
            put_text(b, ":");
            put_string(b, members[i].text, members[i].size);
        }
        put_text(b, "}");
    }
    free(members);
    buffer_free(&endor);
}

/* A member of the header: a part of the length given, or without one, the plain tensor. */
static void put_physical(
    buffer *b, const tensor *t, int part, const uint64_t *length, uint64_t *at, uint64_t size) {
    buffer name = {0};
    put_text(&name, t->name);
    put_text(&name, part_suffixes[part]);
    put_bytes(&name, "", 1);
    put_text(b, ",");
    if (name.failed)
        b->failed = true;
    else
        put_name(b, name.data);
    buffer_free(&name);
    put_text(b, ":{\"dtype\":\"");
    put_text(b, part == 0 ? t->dtype->name : part_dtypes[part]);
    put_text(b, "\",\"shape\":");
    if (length) {
        put_text(b, "[");
        put_number(b, *length);
        put_text(b, "]");
    } else {
        put_shape(b, t->shape);
    }
    put_text(b, ",\"data_offsets\":[");
    put_number(b, *at);
    put_text(b, ",");
    put_number(b, *at += size);
    put_text(b, "]}");
}

/* N and the header (W-2, W-4). Its length does not depend on the digests. */
static bool make_header(const job *j, buffer *b, failure *f) {
    uint64_t at = 0;
    put_bytes(b, "\0\0\0\0\0\0\0\0", 8);
    put_text(b, "{\"__metadata__\":");
    put_metadata(b, j);
    for (size_t i = 0; i < j->count; i++) {
        const item *t = j->in_order[i];
        uint64_t itemsizes[3] = {t->tensor.dtype->bits / 8, 1, 8};
        if (!t->encode) put_physical(b, &t->tensor, 0, NULL, &at, t->size);
        for (int part = 0; t->encode && part < 3; part++) {
            uint64_t length = t->sizes[part] / itemsizes[part];
            put_physical(b, &t->tensor, part, &length, &at, t->sizes[part]);
        }
    }
    put_text(b, "}");
    while (!b->failed && b->size % 64 != 0) put_text(b, " ");
    if (b->failed) return no_memory(f);
    uint64_t length = b->size - 8;
    memcpy(b->data, &length, 8);
    return length <= MAX_WRITTEN_HEADER ||
           unsupported(f, NULL, "W-1: a header of %zu bytes", b->size - 8);
}

/* -- The file */

static bool write_all(int to, const void *bytes, uint64_t size, uint64_t *at, failure *f) {
    const char *from = bytes;
    while (size > 0) {
        ssize_t put = pwrite(to, from, size < INT32_MAX ? (size_t)size : INT32_MAX, (off_t)*at);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return unsupported(f, NULL, "cannot write: %s", strerror(errno));
        from += put;
        *at += (uint64_t)put;
        size -= (uint64_t)put;
    }
    return true;
}

static bool write_encoded(const job *j, item *t, int to, uint64_t *at, failure *f) {
    void *dense = allocate(t->size), *part[3];
    bool good = dense != NULL;
    for (int i = 0; i < 3; i++) {
        part[i] = allocate(t->sizes[i]);
        good = good && part[i] != NULL;
    }
    good = good || no_memory(f);
    good = good && file_read(&j->in, t->tensor.parts[0]->begin, t->size, dense, f);
    if (good) {
        endor_parts parts = {part[0], (size_t)t->sizes[0], part[1], (size_t)t->sizes[1],
                             part[2], (size_t)t->sizes[2]};
        endor_status status = endor_encode(
            ENDOR_AUTO, dense, (size_t)t->size, t->tensor.dtype->bits / 8, 0,
            endor_blocks(t->tensor.numel), 0, t->tensor.nnz, part[0], parts.values_size, part[1],
            parts.bitmap_size, part[2], parts.index_size);
        if (status != ENDOR_OK)
            good = unsupported(
                f, t->tensor.name, "libendor: status %d; did the file change?", (int)status);
        else if (!tensor_digest(&t->tensor, &parts, &t->digest))
            good = no_memory(f);
    }
    for (int i = 0; i < 3; i++) {
        good = good && write_all(to, part[i], t->sizes[i], at, f);
        free(part[i]);
    }
    free(dense);
    return good;
}

static bool write_plain(const job *j, const item *t, int to, uint64_t *at, failure *f) {
    void *piece = allocate(PIECE);
    bool good = piece != NULL || no_memory(f);
    for (uint64_t done = 0; good && done < t->size; done += PIECE) {
        uint64_t size = t->size - done < PIECE ? t->size - done : PIECE;
        good = file_read(&j->in, t->tensor.parts[0]->begin + done, size, piece, f) &&
               write_all(to, piece, size, at, f);
    }
    free(piece);
    return good;
}

/* Data first, then the header with the digests of that data. */
static bool write_file(job *j, int to, failure *f) {
    buffer header = {0};
    bool good = make_header(j, &header, f);
    uint64_t at = header.size;
    for (size_t i = 0; good && i < j->count; i++) {
        item *t = j->in_order[i];
        good = t->encode ? write_encoded(j, t, to, &at, f) : write_plain(j, t, to, &at, f);
    }
    at = 0;
    buffer_free(&header);
    good = good && make_header(j, &header, f) && write_all(to, header.data, header.size, &at, f);
    buffer_free(&header);
    return good;
}

/* The file appears whole or not at all, may replace its own source, and is readable to those that
 * its source is. */
static bool write_job(job *j, const char *output, failure *f) {
    size_t size = strlen(output) + sizeof ".XXXXXX";
    char *path = allocate(size);
    if (path == NULL) return no_memory(f);
    snprintf(path, size, "%s.XXXXXX", output);
    struct stat source;
    int to = mkstemp(path);
    bool good =
        to >= 0 && fstat(j->in.descriptor, &source) == 0 && fchmod(to, source.st_mode & 0666) == 0;
    good = good || unsupported(f, NULL, "cannot write: %s", strerror(errno));
    good = good && write_file(j, to, f);
    if (good && fsync(to) != 0) good = unsupported(f, NULL, "cannot write: %s", strerror(errno));
    if (to >= 0 && close(to) != 0 && good)
        good = unsupported(f, NULL, "cannot write: %s", strerror(errno));
    if (good && rename(path, output) != 0)
        good = unsupported(f, NULL, "cannot write: %s", strerror(errno));
    if (to >= 0 && !good) unlink(path);
    free(path);
    return good;
}

bool encode_file(const char *input, const char *output, failure *f) {
    job j = {.items = NULL};
    bool good = file_open(&j.in, input, f);
    if (good && json_object_get(j.in.metadata, "endor"))
        good = unsupported(f, NULL, "it is an Endor file already");
    good = good && prepare(&j, f) && write_job(&j, output, f);
    free(j.items);
    free(j.in_order);
    file_close(&j.in);
    return good;
}
