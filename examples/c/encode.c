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
#define PIECE ((uint64_t)1 << 20) /* whole blocks of every itemsize */

/* A tensor to be written. */
typedef struct item {
    tensor tensor; /* in the form that was chosen */
    uint64_t size; /* of its dense bytes */
    bool encode;
    part parts[PARTS]; /* what it is written as, if it is encoded */
    uint64_t digest;
} item;

typedef struct job {
    file in;
    choice values;
    item *items;     /* by name, as the tensors of the file */
    item **in_order; /* as their data is written */
    size_t count;
} job;

/* -- Which tensors to encode, and how */

static void add_survey(endor_survey_result *sum, const endor_survey_result *piece) {
    sum->nnz += piece->nnz;
    if (sum->kept < piece->kept) sum->kept = piece->kept;
    for (int i = 0; i < 2; i++)
        for (int k = 0; k < 4; k++) sum->patches[i][k] += piece->patches[i][k];
}

/* Counts what the sizes of all encodings depend on. */
static bool survey(const job *j, const item *t, endor_survey_result *sum, failure *f) {
    endor_encoding e = form_of(&t->tensor, ENDOR_BITMAP, ENDOR_SPLIT).encoding;
    bool split = max_width(t->tensor.dtype) > 0 && j->values != RAW_VALUES;
    void *bytes = allocate(PIECE);
    bool good = bytes != NULL || no_memory(f);
    *sum = (endor_survey_result){.nnz = 0};
    for (uint64_t at = 0; good && at < t->size; at += PIECE) {
        uint64_t size = t->size - at < PIECE ? t->size - at : PIECE;
        endor_survey_result piece = {.nnz = 0};
        good = file_read(&j->in, t->tensor.parts[0]->begin + at, size, bytes, f);
        if (!good) break;
        endor_status status =
            split ? endor_survey(ENDOR_AUTO, &e, bytes, (size_t)size, &piece)
                  : endor_count(ENDOR_AUTO, bytes, (size_t)size, e.itemsize, &piece.nnz);
        if (status != ENDOR_OK)
            good = unsupported(f, t->tensor.name, "libendor: status %d", (int)status);
        add_survey(sum, &piece);
    }
    free(bytes);
    return good;
}

/* T-5 */
static bool has_own_shape(const tensor *t, const part *values) {
    bool same = json_array_size(t->shape) == values->rank;
    for (unsigned i = 0; same && i < values->rank; i++)
        same = (uint64_t)json_integer_value(json_array_get(t->shape, i)) == values->shape[i];
    return same;
}

/* Takes this form if it is smaller than *least, A + H of the best one so far (W-7, W-10). */
static void offer(item *t, const endor_tensor *form, uint64_t *least) {
    tensor offered = t->tensor;
    part parts[PARTS];
    uint64_t sum = form->encoding.values == ENDOR_SPLIT ? 768 : 512;
    offered.form = *form;
    part_layout(&offered, parts);
    for (int i = 0; i < PARTS; i++) sum += parts[i].size;
    if (sum >= *least || has_own_shape(&offered, &parts[VALUES])) return;
    *least = sum;
    t->tensor.form = *form;
    memcpy(t->parts, parts, sizeof parts);
}

/* W-10, in its order: an encoding that is as small as one before it is not taken. Split values that
 * were asked for are for the dtypes that have them. */
static void offer_all(const job *j, item *t, const endor_survey_result *known, uint64_t *least) {
    if (j->values != SPLIT_VALUES || max_width(t->tensor.dtype) == 0) {
        endor_tensor form = form_of(&t->tensor, ENDOR_BITMAP, ENDOR_RAW);
        form.stored = known->nnz;
        offer(t, &form, least);
    }
    if (j->values == RAW_VALUES) return;
    for (uint32_t positions = ENDOR_BITMAP; positions <= ENDOR_ALL; positions++)
        for (uint32_t width = 1; width <= max_width(t->tensor.dtype); width++) {
            endor_tensor form = form_of(&t->tensor, positions, ENDOR_SPLIT);
            form.encoding.width = width;
            form.encoding.kept = known->kept;
            form.stored = positions == ENDOR_ALL ? form.numel : known->nnz;
            form.patches = known->patches[positions][width - 1];
            offer(t, &form, least);
        }
}

/* W-7 */
static bool choose(const job *j, item *t, failure *f) {
    const tensor *all = j->in.tensors;
    endor_survey_result known;
    uint64_t least = UINT64_MAX;
    if (t->tensor.dtype->bits % 8 != 0) return true;
    if (has_below(all, j->count, sizeof all[0], t->tensor.name)) return true;
    if (!survey(j, t, &known, f)) return false;
    offer_all(j, t, &known, &least);
    t->encode = least <= 95 * t->size / 100;
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
    bool first = true, split = false;
    put_text(b, "{\"tensors\":{");
    for (size_t i = 0; i < j->count; i++) {
        const item *t = &j->items[i];
        if (!t->encode) continue;
        if (!first) put_text(b, ",");
        first = false;
        split = split || t->tensor.form.encoding.values == ENDOR_SPLIT;
        put_name(b, t->tensor.name);
        put_text(b, ":");
        put_entry(b, &t->tensor, &t->digest);
    }
    put_text(b, split ? "},\"version\":\"1.1\"}" : "},\"version\":\"1.0\"}"); /* V-3 */
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
        if (json_object_size(j->in.metadata) == 0)
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

/* A member of the header: a part as it has to be, or without one, the plain tensor. */
static void put_physical(buffer *b, const item *t, int which, const part *wanted, uint64_t *at) {
    buffer name = {0};
    put_text(&name, t->tensor.name);
    put_text(&name, part_suffixes[which]);
    put_bytes(&name, "", 1);
    put_text(b, ",");
    if (name.failed)
        b->failed = true;
    else
        put_name(b, name.data);
    buffer_free(&name);
    put_text(b, ":{\"dtype\":\"");
    put_text(b, wanted ? wanted->dtype : t->tensor.dtype->name);
    put_text(b, "\",\"shape\":");
    if (wanted) {
        for (unsigned i = 0; i < wanted->rank; i++) {
            put_text(b, i > 0 ? "," : "[");
            put_number(b, wanted->shape[i]);
        }
        put_text(b, "]");
    } else {
        put_shape(b, t->tensor.shape);
    }
    put_text(b, ",\"data_offsets\":[");
    put_number(b, *at);
    put_text(b, ",");
    put_number(b, *at += wanted ? wanted->size : t->size);
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
        if (!t->encode) put_physical(b, t, VALUES, NULL, &at);
        for (int k = VALUES; t->encode && k < PARTS; k++)
            if (t->parts[k].dtype) put_physical(b, t, k, &t->parts[k], &at);
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
    const endor_tensor *form = &t->tensor.form;
    stored s = {{NULL}, {0}};
    void *dense = allocate(t->size);
    bool good = dense != NULL || no_memory(f);
    good = good && stored_allocate(&s, &t->tensor, f) &&
           file_read(&j->in, t->tensor.parts[0]->begin, t->size, dense, f);
    if (good) {
        endor_room room = {
            s.bytes[VALUES],  (size_t)s.sizes[VALUES],
            s.bytes[BITMAP],  (size_t)s.sizes[BITMAP],
            s.bytes[INDEX],   (size_t)s.sizes[INDEX],
            s.bytes[BASES],   (size_t)s.sizes[BASES],
            s.bytes[PATCHES], (size_t)s.sizes[PATCHES],
        };
        endor_range whole = {
            .stop = endor_blocks(form->numel), .high = form->stored, .patch_high = form->patches};
        endor_status status = endor_encode(ENDOR_AUTO, form, dense, (size_t)t->size, &whole, &room);
        if (status != ENDOR_OK)
            good = unsupported(
                f, t->tensor.name, "libendor: status %d; did the file change?", (int)status);
        else if (!tensor_digest(&t->tensor, &s, &t->digest))
            good = no_memory(f);
    }
    for (int i = 0; good && i < PARTS; i++) good = write_all(to, s.bytes[i], s.sizes[i], at, f);
    stored_free(&s);
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

bool encode_file(const char *input, const char *output, choice values, failure *f) {
    job j = {.values = values};
    bool good = file_open(&j.in, input, f);
    if (good && json_object_get(j.in.metadata, "endor"))
        good = unsupported(f, NULL, "it is an Endor file already");
    good = good && prepare(&j, f) && write_job(&j, output, f);
    free(j.items);
    free(j.in_order);
    file_close(&j.in);
    return good;
}
