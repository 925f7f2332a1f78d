/* Reads safetensors and Endor files with libendor, jansson and xxHash, and checks everything that
 * the specification asks for. It answers in JSON, by the contract of the conformance corpus
 * (conformance/README.md):
 *
 *     endor_read decode PATH [--digests]      the tensors of a file or of a checkpoint directory,
 *                                             with the SHA-256 of their dense bytes
 *     endor_read slice PATH NAME START STOP   SHA-256 of the elements START .. STOP - 1
 *     endor_read encode INPUT OUTPUT [--values auto|raw|split]
 *                                             the canonical Endor file of a plain safetensors file:
 *                                             each tensor in the smallest encoding that there is,
 *                                             or of those with such values; a dtype without split
 *                                             ones has raw ones
 *     endor_read batch                        the same, a request per line of standard input
 *
 * To build it, libendor being installed:
 *
 *     cc -O2 -o endor_read *.c $(pkg-config --cflags --libs endor jansson)
 *
 * A loader wants `endor_file.c` and what that uses: file_open checks a file, tensor_decode_all and
 * tensor_decode hand out the dense bytes of a tensor or of a slice of it, piece after piece, to a
 * function; here that is a SHA-256.
 */
#include "endor_read.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NOT_OFFERED 64

/* -- Answers */

/* The answer that a failure is. jansson copies what it is given; NULL means that there was no
 * memory for that. */
static json_t *failed(const failure *f) {
    if (f->result != REJECT)
        return json_pack(
            "{s:s, s:s, s:[]}", "result", "unsupported", "reason", f->message, "tensors");
    return json_pack(
        "{s:s, s:s, s:o*, s:o*, s:s}", "result", "reject", "rule", f->rule, "tensor",
        f->tensor ? name_json(f->tensor) : NULL, "offset",
        f->offset == NOWHERE ? NULL : json_integer(f->offset), "message", f->message);
}

/* One line of the list of tensors; NULL after a failure. *reason is why the tensor is unsupported,
 * if it is. */
static json_t *describe(
    const file *from, const tensor *t, bool digests, const char **reason, failure *f) {
    sha256 hash;
    bool unverified;
    char hex[65];
    json_t *line = json_pack(
        "{s:o, s:O, s:O}", "name", name_json(t->name), "dtype", t->dtype_name, "shape", t->shape);
    if (line == NULL) {
        no_memory(f);
        return NULL;
    }
    int status = 0;
    *reason = t->unsupported;
    if (t->unsupported) {
        status = json_object_set_new(line, "unsupported", json_string(t->unsupported));
    } else {
        sha256_start(&hash);
        if (!tensor_decode_all(from, t, digests, &unverified, sha256_add, &hash, f)) {
            json_decref(line);
            return NULL;
        }
        sha256_end(&hash, hex);
        status = json_object_set_new(line, "sha256", json_string(hex));
        if (unverified) {
            *reason = "D-4: a digest algorithm that this reader does not know";
            size_t size = strcspn(t->digest, ":");
            status |= json_object_set_new(line, "unverified", json_stringn(t->digest, size));
        }
    }
    if (status != 0) {
        json_decref(line);
        no_memory(f);
        return NULL;
    }
    return line;
}

static json_t *decode_files(const checkpoint *opened, bool digests, failure *f) {
    json_t *lines = json_array();
    const char *reason = NULL, *why;
    for (size_t i = 0; lines && i < opened->count; i++) {
        const file *from = &opened->files[i];
        if (reason == NULL) reason = from->unsupported;
        for (size_t k = 0; k < from->tensor_count; k++) {
            json_t *line = describe(from, &from->tensors[k], digests, &why, f);
            if (line == NULL || json_array_append_new(lines, line) != 0) {
                json_decref(lines);
                return NULL;
            }
            if (reason == NULL) reason = why;
        }
    }
    return json_pack(
        "{s:s, s:s*, s:o}", "result", reason ? "unsupported" : "accept", "reason", reason,
        "tensors", lines);
}

/* -- Commands: from their arguments to an answer. NULL after a failure, or without memory if none
 * is described. */

typedef struct argument {
    const char *text; /* NULL: no more of them */
    size_t size;
} argument;

#define MOST_ARGUMENTS 8 /* the last one stays NULL */

static json_t *decode(const argument *given, failure *f) {
    checkpoint opened;
    bool digests = given[1].text != NULL;
    if (digests && strcmp(given[1].text, "--digests") != 0) {
        unsupported(f, NULL, "usage: decode PATH [--digests]");
        return NULL;
    }
    json_t *answer =
        checkpoint_open(&opened, given[0].text, f) ? decode_files(&opened, digests, f) : NULL;
    checkpoint_close(&opened);
    return answer;
}

/* An element number; UINT64_MAX, which no tensor has, for what is none. */
static uint64_t element(const char *text) {
    size_t digits = strspn(text, "0123456789");
    return digits > 0 && digits < 19 && text[digits] == 0 ? strtoull(text, NULL, 10) : UINT64_MAX;
}

static bool slice_tensor(
    const checkpoint *opened, const char *name, uint64_t start, uint64_t stop, sha256 *hash,
    failure *f) {
    for (size_t i = 0; i < opened->count; i++) {
        const file *from = &opened->files[i];
        for (size_t k = 0; k < from->tensor_count; k++)
            if (strcmp(from->tensors[k].name, name) == 0)
                return tensor_decode(from, &from->tensors[k], start, stop, sha256_add, hash, f);
    }
    return unsupported(f, name, "there is no tensor of this name that can be read");
}

static json_t *slice(const argument *given, failure *f) {
    checkpoint opened;
    sha256 hash;
    char hex[65];
    char *name = name_store(given[1].text, given[1].size);
    if (name == NULL) return NULL;
    sha256_start(&hash);
    bool good =
        checkpoint_open(&opened, given[0].text, f) &&
        slice_tensor(&opened, name, element(given[2].text), element(given[3].text), &hash, f);
    checkpoint_close(&opened);
    free(name);
    if (!good) return NULL;
    sha256_end(&hash, hex);
    return json_pack("{s:s, s:s}", "result", "accept", "sha256", hex);
}

/* Whether it is the name of a choice. */
static bool read_choice(const char *text, choice *values) {
    static const char *const names[] = {"auto", "raw", "split"};
    static const choice choices[] = {ANY_VALUES, RAW_VALUES, SPLIT_VALUES};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(text, names[i]) != 0) continue;
        *values = choices[i];
        return true;
    }
    return false;
}

static json_t *encode(const argument *given, failure *f) {
    choice values = ANY_VALUES;
    bool good = given[2].text == NULL ||
                (given[3].text != NULL && strcmp(given[2].text, "--values") == 0 &&
                 read_choice(given[3].text, &values));
    if (!good) {
        unsupported(f, NULL, "usage: encode INPUT OUTPUT [--values auto|raw|split]");
        return NULL;
    }
    return encode_file(given[0].text, given[1].text, values, f)
               ? json_pack("{s:s}", "result", "accept")
               : NULL;
}

static const struct {
    const char *name;
    size_t least, most; /* arguments */
    json_t *(*run)(const argument *given, failure *f);
} commands[] = {{"decode", 1, 2, decode}, {"slice", 4, 4, slice}, {"encode", 2, 4, encode}};

/* What there is no memory to make. */
static const char out_of_memory[] =
    "{\"result\":\"unsupported\",\"reason\":\"out of memory\",\"tensors\":[]}";

/* The exit status of an answer, and its text; NULL stands for out_of_memory. The text is ASCII
 * alone, so that what comes from a file neither ends a line nor speaks to a terminal (S-4). It is
 * to be freed; the answer is taken. */
static int finish(json_t *answer, char **text) {
    const json_t *verdict = json_object_get(answer, "result");
    int status = string_is(verdict, "accept")   ? ACCEPT
                 : string_is(verdict, "reject") ? REJECT
                                                : UNSUPPORTED;
    *text = json_dumps(answer, JSON_COMPACT | JSON_ENSURE_ASCII);
    json_decref(answer);
    if (*text && !json_exhausted()) return status;
    free(*text);
    *text = NULL;
    return UNSUPPORTED;
}

/* Runs a command, the first of what is given. Returns the exit status. */
static int run(const argument *given, char **text) {
    size_t count = 0;
    while (count < MOST_ARGUMENTS && given[count].text) count++;
    for (size_t i = 0; count > 0 && i < sizeof commands / sizeof commands[0]; i++) {
        if (strcmp(given[0].text, commands[i].name) != 0) continue;
        if (count - 1 < commands[i].least || count - 1 > commands[i].most) break;
        failure f = {.result = ACCEPT, .offset = NOWHERE};
        json_t *answer = commands[i].run(given + 1, &f);
        if (answer == NULL && f.result != ACCEPT) answer = failed(&f);
        failure_clear(&f);
        return finish(answer, text);
    }
    *text = NULL;
    return NOT_OFFERED;
}

/* One request of the batch mode. */
static int run_line(const char *line, size_t length, char **text) {
    argument given[MOST_ARGUMENTS] = {{NULL, 0}};
    json_t *request = json_loadb(line, length, JSON_ALLOW_NUL, NULL);
    const json_t *args = json_object_get(request, "args");
    bool good = json_array_size(args) > 0 && json_array_size(args) < MOST_ARGUMENTS;
    for (size_t i = 0; good && i < json_array_size(args); i++) {
        const json_t *arg = json_array_get(args, i);
        given[i] = (argument){json_string_value(arg), json_string_length(arg)};
        /* A path cannot have a NUL. The name of a tensor can. */
        good = given[i].text && (i == 2 || strlen(given[i].text) == given[i].size);
    }
    static const char why[] = "not a request, or not a path";
    int status =
        good ? run(given, text)
             : finish(
                   json_pack("{s:s, s:s, s:[]}", "result", "unsupported", "reason", why, "tensors"),
                   text);
    json_decref(request);
    return status;
}

static int batch(void) {
    char *line = NULL, *text;
    size_t room = 0;
    for (ssize_t length; (length = getline(&line, &room, stdin)) >= 0;) {
        json_start();
        int status = run_line(line, (size_t)length, &text);
        const char *output = text ? text : status == NOT_OFFERED ? "{}" : out_of_memory;
        printf("{\"exit\":%d,\"output\":%s}\n", status, output);
        fflush(stdout);
        free(text);
    }
    free(line);
    return ferror(stdin) ? EXIT_FAILURE : EXIT_SUCCESS;
}

int main(int count, char **arguments) {
    if (count == 2 && strcmp(arguments[1], "batch") == 0) return batch();
    argument given[MOST_ARGUMENTS] = {{NULL, 0}};
    for (int i = 1; i < count && i < MOST_ARGUMENTS; i++)
        given[i - 1] = (argument){arguments[i], strlen(arguments[i])};
    char *text;
    json_start();
    int status = run(given, &text);
    if (status == NOT_OFFERED)
        fputs(
            "usage: endor_read decode PATH [--digests] | slice PATH NAME START STOP |\n"
            "                  encode INPUT OUTPUT [--values auto|raw|split] | batch\n",
            stderr);
    else
        puts(text ? text : out_of_memory);
    free(text);
    return status;
}
