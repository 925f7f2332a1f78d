/* One file: its header (rules C), its metadata (M), its tensors and their parts (T); decoding (B,
 * E), digests (D).
 *
 * Nothing is believed before it is checked. What the header declares is compared with the length of
 * the file before any memory is allocated for it, and the bytes of a tensor are read once: those
 * that were checked are those that come out.
 */
#include "endor_read.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

/* Section 5.3; E and M of section 8.3. Those of whole bytes can be encoded. */
static const dtype dtypes[] = {
    {"BOOL", 8, 0, 0},        {"U8", 8, 0, 0},      {"I8", 8, 0, 0},      {"F8_E5M2", 8, 5, 2},
    {"F8_E4M3", 8, 4, 3},     {"F8_E8M0", 8, 0, 0}, {"I16", 16, 0, 0},    {"U16", 16, 0, 0},
    {"F8_E4M3FNUZ", 8, 4, 3}, {"F16", 16, 5, 10},   {"BF16", 16, 8, 7},   {"I32", 32, 0, 0},
    {"F8_E5M2FNUZ", 8, 5, 2}, {"U32", 32, 0, 0},    {"F32", 32, 8, 23},   {"C64", 64, 0, 0},
    {"F64", 64, 0, 0},        {"I64", 64, 0, 0},    {"U64", 64, 0, 0},    {"F4", 4, 0, 0},
    {"F6_E2M3", 6, 0, 0},     {"F6_E3M2", 6, 0, 0}};

const char *const part_suffixes[PARTS] = {
    "", ".endor.bitmap", ".endor.index", ".endor.bases", ".endor.patches"};

/* No file is so long: what stands for every larger number of elements. */
#define TOO_MANY (UINT64_C(1) << 57)

#define PIECE ((uint64_t)1 << 20) /* bytes of a plain tensor that are read at once */
#define PIECE_BLOCKS 64           /* blocks of an encoded one that are decoded at once */

static uint64_t roundup(uint64_t x, uint64_t y) {
    return x / y * y + (x % y ? y : 0);
}

static uint64_t smaller(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

bool string_is(const json_t *value, const char *text) {
    size_t size = strlen(text);
    return json_is_string(value) && json_string_length(value) == size &&
           memcmp(json_string_value(value), text, size) == 0;
}

static const dtype *find_dtype(const json_t *name) {
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++)
        if (string_is(name, dtypes[i].name)) return &dtypes[i];
    return NULL;
}

/* -- Names, sorted */

static const char *name_of(const void *thing) {
    return *(const char *const *)thing;
}

int compare_names(const void *a, const void *b) {
    return strcmp(name_of(a), name_of(b));
}

/* As strcmp(name, key + suffix). */
static int compare_with(const char *name, const char *key, const char *suffix) {
    size_t size = strlen(key);
    int order = strncmp(name, key, size);
    return order != 0 ? order : strcmp(name + size, suffix);
}

bool starts_with(const char *name, const char *key, const char *suffix) {
    size_t size = strlen(key);
    return strncmp(name, key, size) == 0 && strncmp(name + size, suffix, strlen(suffix)) == 0;
}

size_t lower_bound(
    const void *things, size_t count, size_t stride, const char *key, const char *suffix) {
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (compare_with(name_of((const char *)things + middle * stride), key, suffix) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

bool has_below(const void *things, size_t count, size_t stride, const char *key) {
    const char *first = things;
    size_t equal = lower_bound(things, count, stride, key, ".endor");
    size_t below = lower_bound(things, count, stride, key, ".endor.");
    return (equal < count && compare_with(name_of(first + equal * stride), key, ".endor") == 0) ||
           (below < count && starts_with(name_of(first + below * stride), key, ".endor."));
}

static physical *find_physical(const file *in, const char *name) {
    size_t at = lower_bound(in->physicals, in->physical_count, sizeof in->physicals[0], name, "");
    bool found = at < in->physical_count && strcmp(in->physicals[at].name, name) == 0;
    return found ? &in->physicals[at] : NULL;
}

/* -- Reading */

bool file_read(const file *opened, uint64_t begin, uint64_t size, void *to, failure *f) {
    char *at = to;
    while (size > 0) {
        ssize_t got = pread(opened->descriptor, at, (size_t)smaller(size, INT32_MAX), (off_t)begin);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return unsupported(f, NULL, "cannot read: %s", strerror(errno));
        if (got == 0) return unsupported(f, NULL, "the file became shorter while it was read");
        at += got;
        begin += (uint64_t)got;
        size -= (uint64_t)got;
    }
    return true;
}

/* -- 5. Container */

/* J-5, and `rule` for what is no array of numbers. */
static bool check_numbers(
    const json_t *array, const char *rule, const char *name, const char *what, failure *f) {
    size_t i;
    const json_t *number;
    if (!json_is_array(array)) return reject(f, rule, name, NOWHERE, "%s is not an array", what);
    json_array_foreach(array, i, number)
        if (!json_is_integer(number))
            return reject(f, rule, name, NOWHERE, "item %zu of %s is not a number", i, what);
    json_array_foreach(array, i, number)
        if (json_integer_value(number) < 0)
            return reject(
                f, "J-5", name, NOWHERE, "item %zu of %s is not as J-5 wants it", i, what);
    return true;
}

static bool check_shape(const json_t *shape, const char *rule, const char *name, failure *f) {
    if (!check_numbers(shape, rule, name, "shape", f)) return false;
    return json_array_size(shape) <= MAX_RANK ||
           reject(f, "C-8", name, NOWHERE, "shape has more than %d members", MAX_RANK);
}

static uint64_t numel_of(const json_t *shape) {
    size_t i;
    const json_t *member;
    uint64_t product = 1;
    json_array_foreach(shape, i, member)
        if (json_integer_value(member) == 0) return 0;
    json_array_foreach(shape, i, member) {
        uint64_t factor = (uint64_t)json_integer_value(member);
        if (product >= TOO_MANY / factor) return TOO_MANY;
        product *= factor;
    }
    return product;
}

/* C-6 to C-10 for one member of the header. */
static bool read_physical(
    const file *in, const char *name, const json_t *about, physical *p, failure *f) {
    if (!json_is_object(about))
        return reject(f, "C-6", name, NOWHERE, "not described by an object");
    const json_t *offsets = json_object_get(about, "data_offsets");
    p->name = name;
    p->dtype_name = json_object_get(about, "dtype");
    p->dtype = find_dtype(p->dtype_name);
    p->shape = json_object_get(about, "shape");
    if (!json_is_string(p->dtype_name))
        return reject(f, "C-6", name, NOWHERE, "dtype is not a string");
    if (!check_shape(p->shape, "C-6", name, f)) return false;
    if (!check_numbers(offsets, "C-6", name, "data_offsets", f)) return false;
    if (json_array_size(offsets) != 2)
        return reject(f, "C-6", name, NOWHERE, "data_offsets has not two members");
    /* Far from wrapping around: both are below 2^53 + 10^8 + 8. */
    p->begin = in->data + (uint64_t)json_integer_value(json_array_get(offsets, 0));
    p->end = in->data + (uint64_t)json_integer_value(json_array_get(offsets, 1));
    if (p->begin > p->end || p->end > in->size)
        return reject(
            f, "C-9", name, NOWHERE, "bytes %" PRIu64 " to %" PRIu64 " of a file of %" PRIu64,
            p->begin, p->end, in->size);
    uint64_t numel = numel_of(p->shape);
    if (p->dtype && (numel == TOO_MANY || 8 * (p->end - p->begin) != numel * p->dtype->bits))
        return reject(
            f, "C-10", name, (int64_t)p->begin, "%" PRIu64 " bytes are not those of its shape",
            p->end - p->begin);
    return true;
}

static int compare_places(const void *a, const void *b) {
    const physical *x = *(const physical *const *)a, *y = *(const physical *const *)b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

/* C-11 to C-13: the tensors cover the data section, each byte once. */
static bool check_layout(const file *in, failure *f) {
    const physical **sorted = allocate_array(in->physical_count, sizeof *sorted);
    if (sorted == NULL) return no_memory(f);
    for (size_t i = 0; i < in->physical_count; i++) sorted[i] = &in->physicals[i];
    qsort(sorted, in->physical_count, sizeof *sorted, compare_places);
    uint64_t at = in->data;
    bool good = true;
    for (size_t i = 0; good && i < in->physical_count; i++) {
        const physical *p = sorted[i];
        if (p->begin < at)
            good =
                reject(f, "C-11", p->name, (int64_t)p->begin, "it overlaps the tensor before it");
        else if (p->begin > at)
            good = reject(
                f, "C-12", p->name, (int64_t)at, "a hole of %" PRIu64 " bytes", p->begin - at);
        at = p->end;
    }
    free(sorted);
    if (good && at != in->size)
        good = reject(
            f, "C-13", NULL, (int64_t)at, "%" PRIu64 " bytes belong to no tensor", in->size - at);
    return good;
}

static bool parse_header(file *in, const char *text, size_t size, failure *f) {
    size_t end = utf8_fault(text, size);
    if (end < size) return reject(f, "C-4", NULL, 8 + (int64_t)end, "the header is not UTF-8");
    if (size == 0 || text[0] != '{')
        return reject(f, "C-5", NULL, 8, "the header does not begin with {");
    in->header = json_read(text, size, &end, f);
    if (in->header == NULL) {
        if (f->offset != NOWHERE) f->offset += 8;
        return false;
    }
    for (; end < size; end++)
        if (text[end] != ' ')
            return reject(f, "C-5", NULL, 8 + (int64_t)end, "not only spaces after the object");
    return true;
}

static bool read_header(file *in, failure *f) {
    uint64_t length;
    if (in->size < 8) return reject(f, "C-1", NULL, 0, "the file has %" PRIu64 " bytes", in->size);
    if (!file_read(in, 0, 8, &length, f)) return false;
    if (length > MAX_TEXT)
        return reject(f, "C-2", NULL, 0, "a header of %" PRIu64 " bytes", length);
    in->data = 8 + length;
    if (in->data > in->size)
        return reject(f, "C-3", NULL, 0, "a header of %" PRIu64 " bytes, past the end", length);
    char *text = allocate(length);
    if (text == NULL) return no_memory(f);
    bool good = file_read(in, 8, length, text, f) && parse_header(in, text, (size_t)length, f);
    free(text);
    return good;
}

/* C-6 to C-13 */
static bool read_physicals(file *in, failure *f) {
    const char *name;
    json_t *about, *text;
    in->metadata = json_object_get(in->header, "__metadata__");
    if (in->metadata && !json_is_object(in->metadata))
        return reject(f, "C-7", NULL, NOWHERE, "__metadata__ is not an object");
    json_object_foreach(in->metadata, name, text) {
        if (!json_is_string(text))
            return reject(
                f, "C-7", NULL, NOWHERE, "the metadata %s is not a string", show(name).text);
    }
    in->physicals = allocate_array(json_object_size(in->header), sizeof in->physicals[0]);
    if (in->physicals == NULL) return no_memory(f);
    json_object_foreach(in->header, name, about) {
        if (about == in->metadata) continue;
        physical *next = &in->physicals[in->physical_count];
        if (!read_physical(in, name, about, next, f)) return false;
        next->place = in->physical_count++;
    }
    qsort(in->physicals, in->physical_count, sizeof in->physicals[0], compare_names);
    return check_layout(in, f);
}

/* -- 6. Metadata */

/* Goes over 0|[1-9][0-9]{0,8}. */
static const char *skip_version(const char *at) {
    size_t digits = strspn(at, "0123456789");
    return digits == 0 || digits > 9 || (*at == '0' && digits > 1) ? NULL : at + digits;
}

/* M-2; *major_1 is whether the rest of the object is to be looked at (V-1). The minor version is
 * none of our business (V-2). */
static bool check_version(const json_t *version, bool *major_1, failure *f) {
    const char *text = json_string_value(version);
    const char *at = text ? skip_version(text) : NULL;
    at = at && *at == '.' ? skip_version(at + 1) : NULL;
    if (at == NULL || at != text + json_string_length(version))
        return reject(f, "M-2", NULL, NOWHERE, "version is not like 1.0");
    *major_1 = strncmp(text, "1.", 2) == 0;
    return true;
}

/* D-1 */
static bool check_digest_form(const char *name, const json_t *digest, failure *f) {
    const char *text = json_string_value(digest);
    size_t algorithm = strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789_");
    size_t digits = text[algorithm] == ':' ? strspn(text + algorithm + 1, "0123456789abcdef") : 0;
    bool known = strncmp(text, "xxh3_64:", 8) == 0;
    bool good = algorithm > 0 && digits > 0 && (!known || digits == 16) &&
                algorithm + 1 + digits == json_string_length(digest);
    return good || reject(f, "D-1", name, NOWHERE, "a digest of another form");
}

/* J-5, and `rule` for what is no number, or not one of least .. most. */
static bool read_number(
    const json_t *entry, const char *member, const char *rule, uint64_t least, uint64_t most,
    const char *name, uint64_t *to, failure *f) {
    const json_t *number = json_object_get(entry, member);
    if (!json_is_integer(number))
        return reject(f, rule, name, NOWHERE, "%s is not a number", member);
    if (json_integer_value(number) < 0)
        return reject(f, "J-5", name, NOWHERE, "%s is not as J-5 wants it", member);
    *to = (uint64_t)json_integer_value(number);
    return (*to >= least && *to <= most) ||
           reject(
               f, rule, name, NOWHERE, "%s is %" PRIu64 ", not %" PRIu64 " to %" PRIu64, member,
               *to, least, most);
}

unsigned max_width(const dtype *type) {
    return type->exponent > 4 ? 4 : type->exponent ? type->exponent - 1 : 0;
}

endor_tensor form_of(const tensor *t, uint32_t positions, uint32_t values) {
    return (endor_tensor){
        .encoding =
            {.itemsize = t->dtype->bits / 8,
             .positions = positions,
             .values = values,
             .exponent = t->dtype->exponent,
             .mantissa = t->dtype->mantissa},
        .numel = t->form.numel};
}

/* M-5 and M-8: what the encoding needs to know. */
static bool read_form(const char *name, const json_t *entry, tensor *t, failure *f) {
    endor_tensor *form = &t->form;
    uint64_t width, kept;
    form->stored = form->numel;
    if (form->encoding.positions == ENDOR_BITMAP &&
        !read_number(entry, "nnz", "M-5", 0, form->numel, name, &form->stored, f))
        return false;
    if (form->encoding.values != ENDOR_SPLIT) return true;
    if (!read_number(entry, "w", "M-8", 1, max_width(t->dtype), name, &width, f) ||
        !read_number(entry, "mantissa", "M-8", 0, t->dtype->mantissa, name, &kept, f) ||
        !read_number(entry, "patches", "M-8", 0, form->stored, name, &form->patches, f))
        return false;
    form->encoding.width = (uint32_t)width;
    form->encoding.kept = (uint32_t)kept;
    return true;
}

/* M-4 to M-8 and D-1: the entry of one tensor. */
static bool read_entry(const char *name, const json_t *entry, tensor *t, failure *f) {
    const json_t *positions = json_object_get(entry, "positions");
    const json_t *values = json_object_get(entry, "values");
    const json_t *digest = json_object_get(entry, "digest");
    t->name = name;
    t->encoded = true;
    t->dtype_name = json_object_get(entry, "dtype");
    t->dtype = find_dtype(t->dtype_name);
    t->shape = json_object_get(entry, "shape");
    t->digest = json_string_value(digest);
    if (!json_is_string(t->dtype_name))
        return reject(f, "M-4", name, NOWHERE, "dtype is not a string");
    if (!json_is_string(positions))
        return reject(f, "M-4", name, NOWHERE, "positions is not a string");
    if (!json_is_string(values)) return reject(f, "M-4", name, NOWHERE, "values is not a string");
    if (digest && !t->digest) return reject(f, "M-4", name, NOWHERE, "digest is not a string");
    if (!check_shape(t->shape, "M-4", name, f)) return false;
    if (digest && !check_digest_form(name, digest, f)) return false;
    t->form.numel = numel_of(t->shape);
    bool all = string_is(positions, "all"), split = string_is(values, "split");
    if (!(all || string_is(positions, "bitmap")) || !(split || string_is(values, "raw")) ||
        (all && !split)) {
        t->unsupported = "M-7: an encoding that this reader does not know";
        return true;
    }
    if (t->dtype == NULL || t->dtype->bits % 8 != 0 || (split && max_width(t->dtype) == 0)) {
        t->unsupported = "M-7: a dtype that this reader does not know, or not in this encoding";
        return true;
    }
    t->form = form_of(t, all ? ENDOR_ALL : ENDOR_BITMAP, split ? ENDOR_SPLIT : ENDOR_RAW);
    return read_form(name, entry, t, f);
}

/* M-3, T-1, and the entries. */
static bool read_entries(file *in, failure *f) {
    const char *name;
    json_t *entry, *entries = json_object_get(in->endor, "tensors");
    if (!json_is_object(entries))
        return reject(f, "M-3", NULL, NOWHERE, "tensors is not an object");
    json_object_foreach(entries, name, entry) {
        if (!json_is_object(entry))
            return reject(f, "M-3", name, NOWHERE, "its entry is not an object");
    }
    in->tensors =
        allocate_array(json_object_size(entries) + in->physical_count, sizeof in->tensors[0]);
    if (in->tensors == NULL) return no_memory(f);
    json_object_foreach(entries, name, entry) {
        if (!read_entry(name, entry, &in->tensors[in->tensor_count++], f)) return false;
    }
    in->encoded_count = in->tensor_count;
    tensor *keys = in->tensors;
    qsort(keys, in->encoded_count, sizeof keys[0], compare_names);
    for (size_t i = 0; i < in->encoded_count; i++) {
        name = keys[i].name;
        if (strcmp(name, "__metadata__") == 0)
            return reject(f, "T-1", name, NOWHERE, "a reserved name");
        if (has_below(keys, in->encoded_count, sizeof keys[0], name))
            return reject(f, "T-1", name, NOWHERE, "another key is named as a part of it would be");
    }
    return true;
}

/* -- 7. Logical tensors and their parts */

static part vector(const char *type, uint64_t length, uint64_t itemsize) {
    return (part){type, 1, {length}, length * itemsize};
}

static part matrix(const char *type, uint64_t rows, uint64_t columns, uint64_t itemsize) {
    return (part){type, 2, {rows, columns}, rows * columns * itemsize};
}

/* Bytes of a group of 64 stored elements with split values: its planes of 64 bits. */
static uint64_t group_size(const endor_encoding *e) {
    return 8 * (uint64_t)(1 + e->kept + e->width);
}

/* Rows of the index: of stored elements, of patches. */
static unsigned index_rows(const endor_encoding *e) {
    return (e->positions == ENDOR_BITMAP ? 1u : 0u) + (e->values == ENDOR_SPLIT ? 1u : 0u);
}

void part_layout(const tensor *t, part parts[PARTS]) {
    const endor_tensor *form = &t->form;
    const endor_encoding *e = &form->encoding;
    uint64_t n = form->stored, nb = endor_blocks(form->numel), entries = roundup(nb + 1, 8);
    uint64_t bitmap = roundup(form->numel / 8 + (form->numel % 8 != 0), 64);
    memset(parts, 0, PARTS * sizeof parts[0]);
    if (e->positions == ENDOR_BITMAP) parts[BITMAP] = vector("U8", bitmap, 1);
    if (e->values == ENDOR_RAW) {
        uint64_t length = roundup(n * e->itemsize, 64) / e->itemsize;
        parts[VALUES] = vector(t->dtype->name, length, e->itemsize);
        parts[INDEX] = vector("I64", entries, 8);
    } else {
        parts[VALUES] = matrix("U8", roundup(n, 512) / 64, group_size(e), 1);
        parts[INDEX] = matrix("I64", index_rows(e), entries, 8);
        parts[BASES] = vector("U8", roundup(nb, 64), 1);
        parts[PATCHES] = matrix("U8", roundup(form->patches, 64), 3, 1);
    }
}

/* T-4 for one part. */
static bool check_part(const tensor *t, int which, const part *wanted, failure *f) {
    const physical *found = t->parts[which];
    if (!string_is(found->dtype_name, wanted->dtype))
        return reject(
            f, "T-4", t->name, (int64_t)found->begin, "X%s is not %s", part_suffixes[which],
            wanted->dtype);
    bool good = t->form.numel != TOO_MANY && json_array_size(found->shape) == wanted->rank;
    for (unsigned i = 0; good && i < wanted->rank; i++)
        good = (uint64_t)json_integer_value(json_array_get(found->shape, i)) == wanted->shape[i];
    return good || reject(
                       f, "T-4", t->name, (int64_t)found->begin,
                       "the shape of X%s is not what that of X wants", part_suffixes[which]);
}

/* Which part of that layout has a suffix; PARTS if none. */
static int find_suffix(const part layout[PARTS], const char *suffix) {
    int which = BITMAP;
    while (which < PARTS && !(layout[which].dtype && strcmp(suffix, part_suffixes[which]) == 0))
        which++;
    return which;
}

/* T-2 to T-5 for one encoded tensor. All that belongs to it is marked (T-7). */
static bool find_parts(file *in, tensor *t, failure *f) {
    part layout[PARTS] = {{.dtype = NULL}};
    physical *first = find_physical(in, t->name);
    if (first == NULL)
        return reject(f, "T-2", t->name, NOWHERE, "there is no physical tensor of this name");
    if (!t->unsupported) part_layout(t, layout);
    first->belongs = true;
    t->parts[VALUES] = first;
    size_t at =
        lower_bound(in->physicals, in->physical_count, sizeof in->physicals[0], t->name, ".endor.");
    for (; at < in->physical_count && starts_with(in->physicals[at].name, t->name, ".endor.");
         at++) {
        physical *found = &in->physicals[at];
        const char *suffix = found->name + strlen(t->name);
        int which = find_suffix(layout, suffix);
        found->belongs = true;
        if (which < PARTS)
            t->parts[which] = found;
        else if (!t->unsupported)
            return reject(
                f, "T-3", t->name, (int64_t)found->begin, "%s is no part of it", show(suffix).text);
    }
    if (t->unsupported) return true;
    for (int i = VALUES; i < PARTS; i++)
        if (layout[i].dtype && t->parts[i] == NULL)
            return reject(f, "T-2", t->name, NOWHERE, "no part X%s", part_suffixes[i]);
    for (int i = VALUES; i < PARTS; i++)
        if (layout[i].dtype && !check_part(t, i, &layout[i], f)) return false;
    if (json_equal(first->shape, t->shape))
        return reject(f, "T-5", t->name, (int64_t)first->begin, "its first part has its own shape");
    return true;
}

static void add_plain(file *in, const physical *p) {
    tensor *t = &in->tensors[in->tensor_count++];
    *t = (tensor){
        .name = p->name, .dtype = p->dtype, .dtype_name = p->dtype_name, .shape = p->shape};
    t->form.numel = numel_of(p->shape);
    t->parts[0] = p;
    if (p->dtype == NULL) t->unsupported = "C-14: a dtype that this reader does not know";
}

static bool ends_with(const char *name, const char *suffix) {
    size_t size = strlen(name), end = strlen(suffix);
    return size >= end && strcmp(name + size - end, suffix) == 0;
}

static bool read_plain_file(file *in, failure *f) {
    in->tensors = allocate_array(in->physical_count, sizeof in->tensors[0]);
    if (in->tensors == NULL) return no_memory(f);
    for (size_t i = 0; i < in->physical_count; i++) {
        const char *name = in->physicals[i].name;
        if (ends_with(name, part_suffixes[BITMAP]) || ends_with(name, part_suffixes[INDEX]))
            return reject(
                f, "T-6", name, NOWHERE, "it is named like a part, but nothing is encoded");
        add_plain(in, &in->physicals[i]);
    }
    return true;
}

/* Rules M and T: what the user sees. */
static bool read_tensors(file *in, failure *f) {
    const json_t *text = json_object_get(in->metadata, "endor");
    bool major_1 = false;
    if (text == NULL) return read_plain_file(in, f);
    in->endor = json_read_all(json_string_value(text), json_string_length(text), f);
    if (in->endor == NULL) {
        f->offset = NOWHERE; /* it is one in the text of the endor object, not in the file */
        return false;
    }
    if (!check_version(json_object_get(in->endor, "version"), &major_1, f)) return false;
    if (!major_1) {
        in->unsupported = "V-1: another major version of the format";
        return true;
    }
    if (!read_entries(in, f)) return false;
    for (size_t i = 0; i < in->encoded_count; i++)
        if (!find_parts(in, &in->tensors[i], f)) return false;
    for (size_t i = 0; i < in->physical_count; i++)
        if (!in->physicals[i].belongs) add_plain(in, &in->physicals[i]);
    return true;
}

bool file_open(file *opened, const char *path, failure *f) {
    struct stat about;
    *opened = (file){.descriptor = -1};
    /* Not to wait for whoever writes to a pipe. */
    opened->descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (opened->descriptor < 0 || fstat(opened->descriptor, &about) != 0)
        return unsupported(f, NULL, "cannot open: %s", strerror(errno));
    if (!S_ISREG(about.st_mode)) return unsupported(f, NULL, "not a regular file");
    opened->size = (uint64_t)about.st_size;
    return read_header(opened, f) && read_physicals(opened, f) && read_tensors(opened, f);
}

void file_close(file *opened) {
    if (opened->descriptor >= 0) close(opened->descriptor);
    json_decref(opened->header);
    json_decref(opened->endor);
    free(opened->physicals);
    free(opened->tensors);
    *opened = (file){.descriptor = -1};
}

/* -- 9. Digest */

void put_shape(buffer *b, const json_t *shape) {
    size_t i;
    const json_t *member;
    put_text(b, "[");
    json_array_foreach(shape, i, member) {
        if (i > 0) put_text(b, ",");
        put_number(b, (uint64_t)json_integer_value(member));
    }
    put_text(b, "]");
}

static void put_member(buffer *b, const char *name, uint64_t number) {
    put_text(b, ",\"");
    put_text(b, name);
    put_text(b, "\":");
    put_number(b, number);
}

void put_entry(buffer *b, const tensor *t, const uint64_t *digest) {
    put_text(b, "{");
    if (digest) {
        static const char hex[] = "0123456789abcdef";
        put_text(b, "\"digest\":\"xxh3_64:");
        for (int shift = 60; shift >= 0; shift -= 4) put_bytes(b, &hex[*digest >> shift & 15], 1);
        put_text(b, "\",");
    }
    const endor_tensor *form = &t->form;
    bool bitmap = form->encoding.positions == ENDOR_BITMAP;
    bool split = form->encoding.values == ENDOR_SPLIT;
    put_text(b, "\"dtype\":\"");
    put_text(b, t->dtype->name);
    put_text(b, "\"");
    if (split) put_member(b, "mantissa", form->encoding.kept);
    if (bitmap) put_member(b, "nnz", form->stored);
    if (split) put_member(b, "patches", form->patches);
    put_text(b, bitmap ? ",\"positions\":\"bitmap\"" : ",\"positions\":\"all\"");
    put_text(b, ",\"shape\":");
    put_shape(b, t->shape);
    put_text(b, split ? ",\"values\":\"split\"" : ",\"values\":\"raw\"");
    if (split) put_member(b, "w", form->encoding.width);
    put_text(b, "}");
}

bool tensor_digest(const tensor *t, const stored *parts, uint64_t *digest) {
    buffer b = {0};
    put_text(&b, "{");
    put_name(&b, t->name);
    put_text(&b, ":");
    put_entry(&b, t, NULL);
    put_text(&b, "}");
    XXH3_state_t state;
    XXH3_64bits_reset(&state);
    if (!b.failed) XXH3_64bits_update(&state, b.data, b.size);
    for (int i = 0; i < PARTS; i++)
        XXH3_64bits_update(&state, parts->bytes[i], (size_t)parts->sizes[i]);
    *digest = XXH3_64bits_digest(&state);
    bool good = !b.failed;
    buffer_free(&b);
    return good;
}

/* D-2 to D-4; all of the parts are there. */
static bool check_digest(const tensor *t, const stored *parts, bool *unverified, failure *f) {
    uint64_t digest;
    if (t->digest == NULL) return true;
    *unverified = strncmp(t->digest, "xxh3_64:", 8) != 0;
    if (*unverified) return true;
    if (!tensor_digest(t, parts, &digest)) return no_memory(f);
    return digest == strtoull(t->digest + 8, NULL, 16) ||
           reject(
               f, "D-2", t->name, NOWHERE, "it has %s, computed is %016" PRIx64, t->digest, digest);
}

/* -- 8. Encodings */

bool stored_allocate(stored *s, const tensor *t, failure *f) {
    part layout[PARTS];
    part_layout(t, layout);
    for (int i = 0; i < PARTS; i++) {
        s->sizes[i] = layout[i].size;
        s->bytes[i] = allocate(layout[i].size);
        if (s->bytes[i] == NULL) return no_memory(f);
    }
    return true;
}

void stored_free(stored *s) {
    for (int i = 0; i < PARTS; i++) free(s->bytes[i]);
}

/* Reads bytes of a part to their place in it. */
static bool load(
    const file *from, const tensor *t, stored *s, int which, uint64_t begin, uint64_t end,
    failure *f) {
    return file_read(from, t->parts[which]->begin + begin, end - begin, s->bytes[which] + begin, f);
}

static int64_t entry_at(const stored *s, uint64_t entry) {
    int64_t value;
    memcpy(&value, s->bytes[INDEX] + 8 * entry, sizeof value);
    return value;
}

static bool reject_entry(const tensor *t, const char *rule, uint64_t entry, failure *f) {
    int64_t at = (int64_t)(t->parts[INDEX]->begin + 8 * entry);
    return reject(f, rule, t->name, at, "entry %" PRIu64 " of the index is wrong", entry);
}

/* Blocks, or what they hold in a part. */
typedef struct range {
    uint64_t begin, end;
} range;

/* What of one row of the index the blocks need. *counted is what it says of them. libendor checks
 * B-4, B-5 and B-7 too, for the sake of memory; here they keep what is read within the parts. */
static bool load_row(
    const file *from, const tensor *t, range blocks, unsigned row, uint64_t count, stored *s,
    range *counted, failure *f) {
    uint64_t nb = endor_blocks(t->form.numel), entries = s->sizes[INDEX] / 8;
    uint64_t length = entries / index_rows(&t->form.encoding), zero = row * length;
    bool last = blocks.end == nb;
    uint64_t first = zero + blocks.begin, stop = zero + blocks.end;
    int64_t most = (int64_t)count;
    if (!load(from, t, s, INDEX, 8 * first, 8 * (last ? zero + length : stop + 1), f)) return false;
    if (first > zero && !load(from, t, s, INDEX, 8 * zero, 8 * (zero + 1), f)) return false;
    if (!last && !load(from, t, s, INDEX, 8 * (zero + nb), 8 * (zero + nb + 1), f)) return false;
    if (entry_at(s, zero) != 0) return reject_entry(t, "B-4", zero, f);
    if (entry_at(s, zero + nb) != most) return reject_entry(t, "B-7", zero + nb, f);
    int64_t low = entry_at(s, first), at = low;
    if (low < 0 || low > most) return reject_entry(t, "B-5", first, f);
    for (uint64_t i = first; i < stop; i++) {
        int64_t next = entry_at(s, i + 1);
        if (next < at || next > most) return reject_entry(t, "B-5", i + 1, f);
        at = next;
    }
    *counted = (range){(uint64_t)low, (uint64_t)at};
    return true;
}

/* Reads what blocks need, to its place in buffers that are as long as the parts: so libendor is
 * given the tensor that it knows, and the pages of the rest are never touched. */
static bool load_blocks(const file *from, const tensor *t, range blocks, stored *s, failure *f) {
    const endor_tensor *form = &t->form;
    const endor_encoding *e = &form->encoding;
    bool last = blocks.end == endor_blocks(form->numel), split = e->values == ENDOR_SPLIT;
    range ranks = {smaller(blocks.begin * ENDOR_BLOCK, form->numel),
                   smaller(blocks.end * ENDOR_BLOCK, form->numel)};
    range patches = {0, 0}, need[PARTS] = {{0, 0}};
    if (e->positions == ENDOR_BITMAP) {
        if (!load_row(from, t, blocks, 0, form->stored, s, &ranks, f)) return false;
        need[BITMAP] = (range){blocks.begin * (ENDOR_BLOCK / 8), blocks.end * (ENDOR_BLOCK / 8)};
    }
    if (split) {
        unsigned row = index_rows(e) - 1;
        if (!load_row(from, t, blocks, row, form->patches, s, &patches, f)) return false;
        uint64_t group = group_size(e);
        need[VALUES] = (range){ranks.begin / 64 * group, (ranks.end + 63) / 64 * group};
        need[BASES] = blocks;
        need[PATCHES] = (range){3 * patches.begin, 3 * patches.end};
    } else {
        need[VALUES] = (range){ranks.begin * e->itemsize, ranks.end * e->itemsize};
    }
    for (int i = 0; i < PARTS; i++) {
        if (i == INDEX || t->parts[i] == NULL) continue;
        uint64_t end = last ? s->sizes[i] : need[i].end;
        if (!load(from, t, s, i, need[i].begin, end, f)) return false;
    }
    return true;
}

static bool reject_part(const tensor *t, endor_status status, uint64_t offset, failure *f) {
    static const struct {
        endor_status status;
        const char *rule;
        int part;
        const char *message;
    } faults[] = {
        {ENDOR_B3, "B-3", BITMAP, "a bit after the last element"},
        {ENDOR_B4, "B-4", INDEX, "the index does not begin with 0"},
        {ENDOR_B5, "B-5", INDEX, "the index falls, or leaves the range of its counts"},
        {ENDOR_B6, "B-6", INDEX, "a block has another number of elements"},
        {ENDOR_B7, "B-7", INDEX, "the index does not end with the number of all"},
        {ENDOR_B8, "B-8", INDEX, "the padding of the index is not 0"},
        {ENDOR_B9, "B-9", VALUES, "the padding of the values is not 0"},
        {ENDOR_B10, "B-10", VALUES, "a stored element is zero"},
        {ENDOR_E2, "E-2", VALUES, "a bit after the last stored element"},
        {ENDOR_E3, "E-3", BASES, "a base is too high, or not 0 in a block without elements"},
        {ENDOR_E4, "E-4", BASES, "the padding of the bases is not 0"},
        {ENDOR_E5, "E-5", PATCHES, "the ranks of patches do not ascend, or leave their block"},
        {ENDOR_E6, "E-6", PATCHES, "the exponent of a patch is too high, or inside the window"},
        {ENDOR_E7, "E-7", VALUES, "an element with a patch has a code that is not 0"},
        {ENDOR_E8, "E-8", PATCHES, "the padding of the patches is not 0"}};
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) {
        if (faults[i].status != status) continue;
        const physical *found = t->parts[faults[i].part];
        int64_t at = found ? (int64_t)(found->begin + offset) : NOWHERE;
        return reject(f, faults[i].rule, t->name, at, "%s", faults[i].message);
    }
    return unsupported(f, t->name, "libendor: status %d", (int)status);
}

/* Checks and decodes the blocks that hold the elements start .. stop - 1, some at a time. */
static bool decode_blocks(
    const tensor *t, const endor_parts *parts, uint64_t start, uint64_t stop, sink *take,
    void *context, failure *f) {
    uint64_t end = endor_blocks(stop), b = start / ENDOR_BLOCK, next;
    size_t itemsize = t->form.encoding.itemsize;
    uint8_t *dense = allocate(smaller(end - b, PIECE_BLOCKS) * ENDOR_BLOCK * itemsize);
    bool good = dense != NULL || no_memory(f);
    /* Once even for a tensor without blocks, which has an index all the same. */
    for (; good; b = next) {
        uint64_t offset;
        next = smaller(b + PIECE_BLOCKS, end);
        uint64_t from = b * ENDOR_BLOCK, to = smaller(next * ENDOR_BLOCK, t->form.numel);
        endor_status status = endor_decode(
            ENDOR_AUTO, &t->form, parts, b, next, dense, (size_t)(to - from) * itemsize, 0,
            &offset);
        if (status != ENDOR_OK) {
            good = reject_part(t, status, offset, f);
            break;
        }
        uint64_t low = start > from ? start : from, high = smaller(stop, to);
        take(context, dense + (low - from) * itemsize, (size_t)(high - low) * itemsize);
        if (next == end) break;
    }
    free(dense);
    return good;
}

static bool decode_encoded(
    const file *from, const tensor *t, uint64_t start, uint64_t stop, bool digests,
    bool *unverified, sink *take, void *context, failure *f) {
    stored s = {{NULL}, {0}};
    range blocks = {start / ENDOR_BLOCK, endor_blocks(stop)};
    bool good = stored_allocate(&s, t, f) && load_blocks(from, t, blocks, &s, f) &&
                (!digests || check_digest(t, &s, unverified, f));
    if (good) {
        endor_parts parts = {
            s.bytes[VALUES],  (size_t)s.sizes[VALUES],
            s.bytes[BITMAP],  (size_t)s.sizes[BITMAP],
            s.bytes[INDEX],   (size_t)s.sizes[INDEX],
            s.bytes[BASES],   (size_t)s.sizes[BASES],
            s.bytes[PATCHES], (size_t)s.sizes[PATCHES],
        };
        good = decode_blocks(t, &parts, start, stop, take, context, f);
    }
    stored_free(&s);
    return good;
}

static bool copy_plain(
    const file *from, uint64_t begin, uint64_t end, sink *take, void *context, failure *f) {
    uint8_t *piece = allocate(smaller(end - begin, PIECE));
    bool good = piece != NULL || no_memory(f);
    while (good && begin < end) {
        uint64_t size = smaller(end - begin, PIECE);
        good = file_read(from, begin, size, piece, f);
        if (good) take(context, piece, (size_t)size);
        begin += size;
    }
    free(piece);
    return good;
}

bool tensor_decode(
    const file *from, const tensor *t, uint64_t start, uint64_t stop, sink *take, void *context,
    failure *f) {
    bool unverified;
    if (t->unsupported) return unsupported(f, t->name, "%s", t->unsupported);
    if (start > stop || stop > t->form.numel)
        return unsupported(f, t->name, "the tensor has no such elements");
    if (t->encoded && start == stop)
        return true; /* of no blocks there is nothing to check (B-11) */
    if (t->encoded)
        return decode_encoded(from, t, start, stop, false, &unverified, take, context, f);
    if (start * t->dtype->bits % 8 != 0 || stop * t->dtype->bits % 8 != 0)
        return unsupported(f, t->name, "the slice does not begin and end with a whole byte");
    uint64_t begin = t->parts[0]->begin;
    return copy_plain(
        from, begin + start * t->dtype->bits / 8, begin + stop * t->dtype->bits / 8, take, context,
        f);
}

bool tensor_decode_all(
    const file *from, const tensor *t, bool digests, bool *unverified, sink *take, void *context,
    failure *f) {
    *unverified = false;
    if (t->unsupported) return unsupported(f, t->name, "%s", t->unsupported);
    if (t->encoded)
        return decode_encoded(from, t, 0, t->form.numel, digests, unverified, take, context, f);
    return copy_plain(from, t->parts[0]->begin, t->parts[0]->end, take, context, f);
}
