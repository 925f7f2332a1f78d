/* A checkpoint: one file, or a directory with an index and shards (section 11, rules K). */
#include "endor_read.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The names in a directory, sorted. */
typedef struct listing {
    char **names;
    size_t count, room;
} listing;

/* A member of weight_map. */
typedef struct listed {
    const char *name; /* of a physical tensor, stored; the first member, see lower_bound */
    const char *file_name;
    size_t shard;
} listed;

/* The index of a checkpoint: what it lists, by name, and the files that it names. */
typedef struct map {
    json_t *tree;
    listed *lines;
    size_t count;
    const char **shards;
    size_t shard_count;
} map;

/* What stands between two ends of a name; its text is NULL if the name has not these ends. */
typedef struct middle {
    const char *text;
    size_t size;
} middle;

#define NAME_SIZE 512 /* of the name of a file with a few characters more */

static const char *const index_stem = "model.safetensors.index";

static middle between(const char *name, const char *begin, const char *end) {
    size_t size = strlen(name), first = strlen(begin), last = strlen(end);
    if (size < first + last || strncmp(name, begin, first) != 0 ||
        strcmp(name + size - last, end) != 0)
        return (middle){NULL, 0};
    return (middle){name + first, size - first - last};
}

/* The variant of an index or a shard, with its point: nothing, or `.fp16`. */
static bool is_variant(middle m) {
    return m.text && (m.size == 0 || (m.size >= 2 && m.text[0] == '.'));
}

static bool is_endor_weights(const char *name) {
    middle m = between(name, "model.endor", ".safetensors");
    return m.text && (m.size == 0 || m.text[0] == '.' || m.text[0] == '-');
}

static bool is_dense(const char *name) {
    middle m = between(name, "model", ".safetensors");
    if (m.text && (m.size == 0 || m.text[0] == '.' || m.text[0] == '-'))
        return !is_endor_weights(name);
    if (between(name, "pytorch_model", ".bin").text) return true;
    return between(name, "model.safetensors.index.", "json").text &&
           !starts_with(name, index_stem, ".endor.") && !starts_with(name, index_stem, ".dense.");
}

/* What stands for a dense name that `.endor` cannot be put into (K-11). */
static middle otherwise(const char *name) {
    middle m = between(name, "model.endor-", ".file.safetensors");
    return m.size > 0 ? m : (middle){NULL, 0};
}

static bool is_unsafe(char c) {
    return (unsigned char)c < ' ' || strchr("/\\:", c) != NULL;
}

static bool is_name(const char *text, size_t size) {
    if (size == 0 || (size <= 2 && memcmp(text, "..", size) == 0)) return false;
    for (size_t i = 0; i < size; i++)
        if (is_unsafe(text[i])) return false;
    return true;
}

/* The name of a file (K-1); where folders are allowed, names with `/` between them (K-10). */
static bool is_path(const char *text, size_t size, bool folders) {
    for (size_t begin = 0;;) {
        size_t end = begin;
        while (end < size && !(folders && text[end] == '/')) end++;
        if (!is_name(text + begin, end - begin)) return false;
        if (end == size) return true;
        begin = end + 1;
    }
}

/* The Endor name of dense weights `*.safetensors` (K-11); to be freed, NULL without memory. */
static char *endor_name(const char *dense) {
    size_t size = strlen(dense), stem = size - strlen(".safetensors");
    size_t room = 3 * size + sizeof "model.endor-.file.safetensors";
    char *name = allocate(room);
    if (name == NULL) return NULL;
    middle m = between(dense, "model", ".safetensors");
    bool simple = m.text && (m.size == 0 || m.text[0] == '.' || m.text[0] == '-');
    if (simple && !is_endor_weights(dense) && is_path(dense, size, false)) {
        snprintf(name, room, "model.endor%s", dense + strlen("model"));
        if (!otherwise(name).text) return name;
    }
    size_t at = (size_t)snprintf(name, room, "model.endor-");
    for (size_t i = 0; i < stem; i++) {
        bool escaped = dense[i] == '%' || is_unsafe(dense[i]);
        const char *format = escaped ? "%%%02X" : "%c";
        at += (size_t)snprintf(name + at, room - at, format, (unsigned char)dense[i]);
    }
    snprintf(name + at, room - at, ".file.safetensors");
    return name;
}

static int digit(char c) {
    static const char digits[] = "0123456789ABCDEF";
    const char *found = c ? strchr(digits, c) : NULL;
    return found ? (int)(found - digits) : -1;
}

/* K-11: a name of that form is the Endor name of some path. */
static bool check_name(const char *name, failure *f) {
    middle m = otherwise(name);
    if (!m.text) return true;
    char *dense = allocate(m.size + sizeof ".safetensors"), *again = NULL;
    size_t size = 0;
    for (size_t i = 0; dense && i < m.size; i++) {
        bool escaped = m.text[i] == '%' && digit(m.text[i + 1]) >= 0 && digit(m.text[i + 2]) >= 0;
        dense[size++] =
            escaped ? (char)(16 * digit(m.text[i + 1]) + digit(m.text[i + 2])) : m.text[i];
        if (escaped) i += 2;
    }
    bool good = dense != NULL;
    if (!good) {
        no_memory(f);
    } else if (is_path(dense, size, true)) {
        memcpy(dense + size, ".safetensors", sizeof ".safetensors");
        again = endor_name(dense);
        good = again != NULL || no_memory(f);
    }
    if (good && (again == NULL || strcmp(again, name) != 0))
        good = reject(f, "K-11", NULL, NOWHERE, "%s stands for no dense weights", show(name).text);
    free(dense);
    free(again);
    return good;
}

static middle index_variant(const char *name) {
    middle m = between(name, "model.safetensors.index.endor", ".json");
    return is_variant(m) ? m : (middle){NULL, 0};
}

/* Of a shard, model.endor.fp16-00001-of-00002.safetensors; NULL if the name is not like that. */
static middle shard_variant(const char *name) {
    static const char number[] = "-00000-of-00000";
    middle m = between(name, "model.endor", ".safetensors");
    if (!m.text || m.size < sizeof number - 1) return (middle){NULL, 0};
    m.size -= sizeof number - 1;
    for (size_t i = 0; i < sizeof number - 1; i++) {
        char c = m.text[m.size + i];
        if (number[i] == '0' ? c < '0' || c > '9' : c != number[i]) return (middle){NULL, 0};
    }
    return is_variant(m) ? m : (middle){NULL, 0};
}

static bool same(middle a, middle b) {
    return a.text && b.text && a.size == b.size && memcmp(a.text, b.text, a.size) == 0;
}

/* -- The directory */

static void listing_free(listing *l) {
    for (size_t i = 0; i < l->count; i++) free(l->names[i]);
    free(l->names);
}

static bool list(const char *path, listing *l, failure *f) {
    DIR *directory = opendir(path);
    if (directory == NULL) return unsupported(f, NULL, "cannot open: %s", strerror(errno));
    bool good = true;
    for (struct dirent *entry; good && (entry = readdir(directory)) != NULL;) {
        if (l->count == l->room) {
            size_t room = l->room ? 2 * l->room : 64;
            char **names = realloc(l->names, room * sizeof *names);
            if (names) {
                l->names = names;
                l->room = room;
            }
        }
        char *name = l->count < l->room ? strdup(entry->d_name) : NULL;
        if (name)
            l->names[l->count++] = name;
        else
            good = no_memory(f);
    }
    closedir(directory);
    if (l->count > 0) qsort(l->names, l->count, sizeof l->names[0], compare_names);
    return good;
}

static bool is_listed(const listing *l, const char *name) {
    size_t at = lower_bound(l->names, l->count, sizeof l->names[0], name, "");
    return at < l->count && strcmp(l->names[at], name) == 0;
}

/* The directory's path and a name in it; to be freed. */
static char *path_in(const char *directory, const char *name) {
    size_t size = strlen(directory) + strlen(name) + 2;
    char *path = allocate(size);
    if (path) snprintf(path, size, "%s/%s", directory, name);
    return path;
}

/* A whole text, an index or a config; to be freed, NULL after a failure. */
static char *read_text(const char *directory, const char *name, size_t *size, failure *f) {
    char *path = path_in(directory, name), *text = NULL;
    file opened = {.descriptor = path ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1};
    struct stat about;
    if (path == NULL) {
        no_memory(f);
    } else if (opened.descriptor < 0 || fstat(opened.descriptor, &about) != 0) {
        unsupported(f, NULL, "cannot open %s: %s", show(name).text, strerror(errno));
    } else if (!S_ISREG(about.st_mode) || (uint64_t)about.st_size > MAX_TEXT) {
        unsupported(f, NULL, "%s is not a file, or too large", show(name).text);
    } else {
        *size = (size_t)about.st_size;
        text = allocate(*size);
        if (text == NULL) {
            no_memory(f);
        } else if (!file_read(&opened, 0, *size, text, f)) {
            free(text);
            text = NULL;
        }
    }
    free(path);
    file_close(&opened);
    return text;
}

/* -- The index */

/* What an index breaks, it breaks because K-1 applies the rules J to it. */
static bool as_rule(failure *f, const char *rule) {
    if (f->result == REJECT) {
        char message[sizeof f->message];
        snprintf(message, sizeof message, "%s", f->message);
        snprintf(f->message, sizeof f->message, "%.8s: %.180s", f->rule, message);
        snprintf(f->rule, sizeof f->rule, "%s", rule);
        f->offset = NOWHERE; /* in which file would it be? */
    }
    return false;
}

static void map_free(map *m) {
    json_decref(m->tree);
    free(m->lines);
    free(m->shards);
}

/* K-1; in an index that was kept, files may lie in folders. */
static bool read_map(
    const char *directory, const char *name, bool folders, map *m, failure *f) {
    size_t size;
    char *text = read_text(directory, name, &size, f);
    if (text == NULL) return false;
    size_t fault = utf8_fault(text, size);
    if (fault < size)
        reject(f, "K-1", NULL, NOWHERE, "byte %zu of the index is not UTF-8", fault);
    else if ((m->tree = json_read_all(text, size, f)) == NULL)
        as_rule(f, "K-1");
    free(text);
    if (m->tree == NULL) return false;
    json_t *lines = json_object_get(m->tree, "weight_map");
    if (!json_is_object(lines))
        return reject(f, "K-1", NULL, NOWHERE, "weight_map is not an object");
    m->lines = allocate_array(json_object_size(lines), sizeof m->lines[0]);
    if (m->lines == NULL) return no_memory(f);
    const char *key;
    json_t *value;
    json_object_foreach(lines, key, value) {
        const char *file_name = json_string_value(value);
        if (!file_name || !is_path(file_name, json_string_length(value), folders))
            return reject(
                f, "K-1", key, NOWHERE, "in the index it is not in a file of the directory");
        m->lines[m->count++] = (listed){key, file_name, 0};
    }
    qsort(m->lines, m->count, sizeof m->lines[0], compare_names);
    return true;
}

static int compare_files(const void *a, const void *b) {
    return strcmp(((const listed *)a)->file_name, ((const listed *)b)->file_name);
}

/* Gives the files of the index numbers, in the order of their names. */
static bool number_shards(map *m, failure *f) {
    m->shards = allocate_array(m->count, sizeof m->shards[0]);
    if (m->shards == NULL) return no_memory(f);
    qsort(m->lines, m->count, sizeof m->lines[0], compare_files);
    for (size_t i = 0; i < m->count; i++) {
        if (i == 0 || compare_files(&m->lines[i - 1], &m->lines[i]) != 0)
            m->shards[m->shard_count++] = m->lines[i].file_name;
        m->lines[i].shard = m->shard_count - 1;
    }
    qsort(m->lines, m->count, sizeof m->lines[0], compare_names);
    return true;
}

static bool names_shard(const map *m, const char *file_name) {
    size_t at = lower_bound(m->shards, m->shard_count, sizeof m->shards[0], file_name, "");
    return at < m->shard_count && strcmp(m->shards[at], file_name) == 0;
}

/* -- The rules */

/* K-8 */
static bool check_config(const char *directory, const char *name, failure *f) {
    size_t size;
    char *text = read_text(directory, name, &size, f);
    if (text == NULL) return false;
    bool good = json_check_lax(text, size, f) || as_rule(f, "K-8");
    free(text);
    return good;
}

/* A file is restored from Endor weights, or is kept under its name and `.dense` (K-12). */
static bool is_restored(
    const char *directory, const listing *l, const char *dense, bool *found, failure *f) {
    *found = false;
    if (between(dense, "", ".safetensors").text) {
        char *encoded = endor_name(dense);
        if (encoded == NULL) return no_memory(f);
        *found = is_listed(l, encoded);
        free(encoded);
    }
    if (*found) return true;
    size_t size = strlen(dense) + sizeof ".dense";
    char *kept = allocate(size), *path = NULL;
    if (kept) {
        snprintf(kept, size, "%s.dense", dense);
        path = path_in(directory, kept);
    }
    free(kept);
    if (path == NULL) return no_memory(f);
    struct stat about;
    *found = stat(path, &about) == 0 && S_ISREG(about.st_mode);
    free(path);
    return true;
}

/* K-10: a dense index that was kept names files that will be there again. */
static bool check_kept(const char *directory, const listing *l, const char *index, failure *f) {
    char kept[NAME_SIZE];
    snprintf(
        kept, sizeof kept, "%s.dense%s", index_stem, index + strlen(index_stem) + strlen(".endor"));
    if (!is_listed(l, kept)) return true;
    map m = {0};
    bool good = read_map(directory, kept, true, &m, f);
    for (size_t i = 0; good && i < m.count; i++) {
        bool found;
        const char *dense = m.lines[i].file_name;
        good = is_restored(directory, l, dense, &found, f);
        if (good && !found)
            good = reject(
                f, "K-10", m.lines[i].name, NOWHERE, "the kept index has it in %s",
                show(dense).text);
    }
    map_free(&m);
    return good;
}

/* K-2: what the index names is there, and what is there is named. */
static bool check_shards(
    const char *directory, const listing *l, const char *index, const map *m, failure *f) {
    for (size_t i = 0; i < m->shard_count; i++) {
        struct stat about;
        char *path = path_in(directory, m->shards[i]);
        if (path == NULL) return no_memory(f);
        bool there =
            is_endor_weights(m->shards[i]) && stat(path, &about) == 0 && S_ISREG(about.st_mode);
        free(path);
        if (!there)
            return reject(
                f, "K-2", NULL, NOWHERE, "there are no Endor weights %s", show(m->shards[i]).text);
    }
    for (size_t i = 0; i < l->count; i++)
        if (same(shard_variant(l->names[i]), index_variant(index)) && !names_shard(m, l->names[i]))
            return reject(
                f, "K-2", NULL, NOWHERE, "the index does not name %s", show(l->names[i]).text);
    return true;
}

/* K-3: the index lists what its files hold. */
static bool check_map(const checkpoint *c, const map *m, failure *f) {
    size_t held = 0;
    for (size_t i = 0; i < m->count; i++) {
        const file *in = &c->files[m->lines[i].shard];
        const char *name = m->lines[i].name;
        size_t at =
            lower_bound(in->physicals, in->physical_count, sizeof in->physicals[0], name, "");
        if (at == in->physical_count || strcmp(in->physicals[at].name, name) != 0)
            return reject(
                f, "K-3", name, NOWHERE, "it is not in %s", show(m->lines[i].file_name).text);
    }
    /* Names are unique in the index and in each file. So these are all if they are as many. */
    for (size_t i = 0; i < c->count; i++) held += c->files[i].physical_count;
    return m->count == held ||
           reject(f, "K-3", NULL, NOWHERE, "the index lists %zu of %zu tensors", m->count, held);
}

/* K-4: no shard has what would be a part of a tensor of another one. */
static bool check_parts_together(const checkpoint *c, const map *m, failure *f) {
    for (size_t shard = 0; shard < c->count; shard++)
        for (size_t i = 0; i < c->files[shard].encoded_count; i++) {
            const char *key = c->files[shard].tensors[i].name;
            size_t at = lower_bound(m->lines, m->count, sizeof m->lines[0], key, ".endor.");
            for (; at < m->count && starts_with(m->lines[at].name, key, ".endor."); at++)
                if (m->lines[at].shard != shard)
                    return reject(f, "K-4", key, NOWHERE, "a part of it is in another file");
        }
    return true;
}

/* -- Opening */

static bool open_files(
    checkpoint *c, const char *directory, const char *const *names, size_t count, failure *f) {
    c->files = allocate_array(count, sizeof c->files[0]);
    if (c->files == NULL) return no_memory(f);
    for (size_t i = 0; i < count; i++) {
        char *path = path_in(directory, names[i]);
        if (path == NULL) return no_memory(f);
        bool good = file_open(&c->files[c->count++], path, f);
        free(path);
        if (!good) return false;
    }
    return true;
}

static bool open_indexed(
    checkpoint *c, const char *directory, const listing *l, const char *index, failure *f) {
    map m = {0};
    bool good = read_map(directory, index, false, &m, f) && number_shards(&m, f) &&
                check_shards(directory, l, index, &m, f) && check_kept(directory, l, index, f) &&
                open_files(c, directory, m.shards, m.shard_count, f) && check_map(c, &m, f) &&
                check_parts_together(c, &m, f);
    map_free(&m);
    return good;
}

static bool open_listing(checkpoint *c, const char *directory, const listing *l, failure *f) {
    const char *weights = NULL, *dense = NULL, *index = NULL;
    size_t count = 0;
    for (size_t i = 0; i < l->count; i++) {
        const char *name = l->names[i];
        if (is_dense(name)) dense = name;
        if (is_endor_weights(name)) {
            weights = name;
            count++;
        }
        /* Where there are several variants, the one without a further name is meant. */
        if (index_variant(name).text && (!index || strlen(name) < strlen(index))) index = name;
    }
    if (weights && dense)
        return reject(f, "K-5", NULL, NOWHERE, "%s is beside Endor weights", show(dense).text);
    static const char *const configs[] = {"config.json", "config.dense.json"};
    for (int i = 0; i < 2; i++)
        if (is_listed(l, configs[i]) && !check_config(directory, configs[i], f)) return false;
    for (size_t i = 0; i < l->count; i++)
        if (is_endor_weights(l->names[i]) && !check_name(l->names[i], f)) return false;
    for (size_t i = 0; i < l->count; i++) {
        middle variant = shard_variant(l->names[i]);
        char its_index[NAME_SIZE];
        if (!variant.text) continue;
        snprintf(
            its_index, sizeof its_index, "%s.endor%.*s.json", index_stem, (int)variant.size,
            variant.text);
        if (!is_listed(l, its_index))
            return reject(f, "K-2", NULL, NOWHERE, "%s has no index", show(l->names[i]).text);
    }
    if (index) return open_indexed(c, directory, l, index, f);
    if (count != 1)
        return unsupported(f, NULL, "a directory of %zu Endor files and no index", count);
    return open_files(c, directory, &weights, 1, f);
}

bool checkpoint_open(checkpoint *opened, const char *path, failure *f) {
    struct stat about;
    *opened = (checkpoint){0};
    if (stat(path, &about) == 0 && S_ISDIR(about.st_mode)) {
        listing l = {0};
        bool good = list(path, &l, f) && open_listing(opened, path, &l, f);
        listing_free(&l);
        return good;
    }
    opened->files = allocate_array(1, sizeof opened->files[0]);
    if (opened->files == NULL) return no_memory(f);
    opened->count = 1;
    return file_open(&opened->files[0], path, f);
}

void checkpoint_close(checkpoint *opened) {
    for (size_t i = 0; i < opened->count; i++) file_close(&opened->files[i]);
    free(opened->files);
    *opened = (checkpoint){0};
}
