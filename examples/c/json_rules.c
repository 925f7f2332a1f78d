/* JSON as section 4 of the specification wants it: checked on the way in, canonical on the way out.
 *
 * jansson builds the tree, but it is too strict in one place and too lax in another: numbers that
 * do not fit into 64 bits and NULs in names of members are errors to it, and -0, deep nesting and
 * what a number looked like are lost on it. So a scanner goes first. It checks J-1, J-3 and J-4 and
 * makes a copy of the text that jansson takes; J-2 is then jansson's.
 */
#include "endor_read.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* -- Bytes that grow */

void put_bytes(buffer *b, const char *bytes, size_t size) {
    if (b->failed || size == 0) return;
    if (size > b->room - b->size) {
        size_t room = b->room ? b->room : 256;
        while (room - b->size < size && room <= SIZE_MAX / 2) room *= 2;
        char *data = room - b->size < size ? NULL : realloc(b->data, room);
        if (data == NULL) {
            b->failed = true;
            return;
        }
        b->data = data;
        b->room = room;
    }
    memcpy(b->data + b->size, bytes, size);
    b->size += size;
}

void put_text(buffer *b, const char *text) {
    put_bytes(b, text, strlen(text));
}

void put_number(buffer *b, uint64_t number) {
    char digits[24];
    snprintf(digits, sizeof digits, "%" PRIu64, number);
    put_text(b, digits);
}

/* A character of a string, escaped if canonical JSON text has it so. */
static void put_escaped(buffer *b, char c) {
    static const char plain[] = "\"\\\b\t\n\f\r", letters[] = "\"\\btnfr";
    const char *found = c ? strchr(plain, c) : NULL;
    if (found) {
        char escape[2] = {'\\', letters[found - plain]};
        put_bytes(b, escape, 2);
    } else if ((unsigned char)c < ' ') {
        char escape[8];
        snprintf(escape, sizeof escape, "\\u%04x", (unsigned)(unsigned char)c);
        put_text(b, escape);
    } else {
        put_bytes(b, &c, 1);
    }
}

void put_string(buffer *b, const char *bytes, size_t size) {
    put_text(b, "\"");
    for (size_t i = 0; i < size; i++) put_escaped(b, bytes[i]);
    put_text(b, "\"");
}

void buffer_free(buffer *b) {
    free(b->data);
    *b = (buffer){0};
}

/* -- Stored names */

/* The character at *at, and on to the next one. */
static char next_of_name(const char **at) {
    char c = *(*at)++;
    return c == 1 ? (char)(*(*at)++ - 1) : c;
}

void put_name(buffer *b, const char *stored) {
    put_text(b, "\"");
    while (*stored) put_escaped(b, next_of_name(&stored));
    put_text(b, "\"");
}

char *name_store(const char *bytes, size_t size) {
    buffer b = {0};
    for (size_t i = 0; i < size; i++) {
        char stuffed[2] = {1, (char)(bytes[i] + 1)};
        bool stuff = bytes[i] == 0 || bytes[i] == 1;
        put_bytes(&b, stuff ? stuffed : bytes + i, stuff ? 2 : 1);
    }
    put_bytes(&b, "", 1);
    if (b.failed) buffer_free(&b);
    return b.data;
}

json_t *name_json(const char *stored) {
    char *name = allocate(strlen(stored));
    if (name == NULL) return NULL;
    size_t size = 0;
    while (*stored) name[size++] = next_of_name(&stored);
    json_t *value = json_stringn(name, size);
    free(name);
    return value;
}

/* -- UTF-8 */

size_t utf8_fault(const char *text, size_t size) {
    for (size_t at = 0; at < size;) {
        unsigned char c = (unsigned char)text[at];
        /* The bytes after the first, and the bounds of the next one: they exclude overlong forms
         * and surrogates. */
        unsigned more, low = 0x80, high = 0xBF;
        if (c < 0x80) {
            more = 0;
        } else if (c >= 0xC2 && c <= 0xDF) {
            more = 1;
        } else if (c >= 0xE0 && c <= 0xEF) {
            more = 2;
            if (c == 0xE0) low = 0xA0;
            if (c == 0xED) high = 0x9F;
        } else if (c >= 0xF0 && c <= 0xF4) {
            more = 3;
            if (c == 0xF0) low = 0x90;
            if (c == 0xF4) high = 0x8F;
        } else {
            return at;
        }
        if (more >= size - at) return at;
        for (unsigned i = 1; i <= more; i++, low = 0x80, high = 0xBF) {
            c = (unsigned char)text[at + i];
            if (c < low || c > high) return at;
        }
        at += 1 + more;
    }
    return size;
}

/* -- Memory of jansson: it goes on after some failed allocations, with bytes missing in a string.
 * So after the first one there is none any more, and no tree is believed. */

static _Thread_local bool exhausted;

static void *allocate_json(size_t size) {
    void *memory = exhausted ? NULL : malloc(size);
    if (memory == NULL) exhausted = true;
    return memory;
}

void json_start(void) {
    exhausted = false;
    json_set_alloc_funcs(allocate_json, free);
}

bool json_exhausted(void) {
    return exhausted;
}

/* -- The scanner */

#define END (-1)
#define LAX_DEPTH 1000 /* bounds the recursion */

typedef struct scanner {
    const char *text;
    size_t size, at;
    bool lax;      /* K-8 */
    buffer copy;   /* what jansson gets: without white space, and with other numbers and names */
    uint64_t wide; /* the objects of two members or more so far: J-2 speaks of them alone */
    failure *f;
} scanner;

static int peek_at(const scanner *s, size_t at) {
    return at < s->size ? (unsigned char)s->text[at] : END;
}

static int peek(const scanner *s) {
    return peek_at(s, s->at);
}

static bool fault(scanner *s, const char *rule, size_t at, const char *what) {
    return reject(s->f, rule, NULL, (int64_t)at, "%s", what);
}

static void skip_space(scanner *s) {
    while (peek(s) == ' ' || peek(s) == '\t' || peek(s) == '\n' || peek(s) == '\r') s->at++;
}

/* Goes over a word if it is there. */
static bool skip_word(scanner *s, const char *word) {
    size_t size = strlen(word);
    if (size > s->size - s->at || memcmp(s->text + s->at, word, size) != 0) return false;
    s->at += size;
    return true;
}

static bool skip_digits(scanner *s) {
    size_t start = s->at;
    while (peek(s) >= '0' && peek(s) <= '9') s->at++;
    return s->at > start;
}

static bool scan_number(scanner *s) {
    size_t start = s->at;
    bool in_form = peek(s) != '-', good = true;
    if (!in_form) s->at++;
    if (peek(s) == '0')
        s->at++;
    else
        good = skip_digits(s);
    if (good && peek(s) == '.') {
        in_form = false;
        s->at++;
        good = skip_digits(s);
    }
    if (good && (peek(s) == 'e' || peek(s) == 'E')) {
        in_form = false;
        s->at++;
        if (peek(s) == '+' || peek(s) == '-') s->at++;
        good = skip_digits(s);
    }
    if (!good) return fault(s, "J-1", start, "not a JSON number");
    uint64_t value = 0;
    for (size_t i = start; in_form && i < s->at; i++) {
        value = 10 * value + (uint64_t)(s->text[i] - '0');
        in_form = value <= MAX_INTEGER;
    }
    if (in_form)
        put_bytes(&s->copy, s->text + start, s->at - start);
    else
        put_text(&s->copy, "-1"); /* a number still, and one that J-5 does not admit */
    return true;
}

/* The four hexadecimal digits of \uXXXX, the backslash being at `at`; END if that is not what is
 * there. */
static int unit_at(const scanner *s, size_t at) {
    int unit = 0;
    if (peek_at(s, at) != '\\' || peek_at(s, at + 1) != 'u') return END;
    for (size_t i = at + 2; i < at + 6; i++) {
        int c = peek_at(s, i), letter = c | 0x20;
        if (c >= '0' && c <= '9')
            unit = 16 * unit + c - '0';
        else if (c != END && letter >= 'a' && letter <= 'f')
            unit = 16 * unit + letter - 'a' + 10;
        else
            return END;
    }
    return unit;
}

static bool scan_escape(scanner *s, bool name) {
    size_t start = s->at;
    int c = peek_at(s, start + 1), unit = unit_at(s, start);
    if (unit != END) {
        s->at += 6;
        bool high = unit >= 0xD800 && unit <= 0xDBFF, low = unit >= 0xDC00 && unit <= 0xDFFF;
        if (high) {
            int next = unit_at(s, s->at);
            low = next < 0xDC00 || next > 0xDFFF;
            if (!low) s->at += 6;
        }
        if (low && !s->lax) return fault(s, "J-3", start, "a lone surrogate");
    } else if (c > 0 && strchr("\"\\/bfnrt", c)) {
        s->at += 2;
    } else {
        return fault(s, "J-1", start, "an escape that JSON does not have");
    }
    if (name && (unit == 0 || unit == 1))
        put_text(&s->copy, unit == 0 ? "\\u0001\\u0001" : "\\u0001\\u0002");
    else
        put_bytes(&s->copy, s->text + start, s->at - start);
    return true;
}

static bool scan_string(scanner *s, bool name) {
    if (peek(s) != '"') return fault(s, "J-1", s->at, "not a string");
    size_t start = s->at++;
    put_text(&s->copy, "\"");
    while (peek(s) != '"') {
        if (peek(s) == END) return fault(s, "J-1", start, "the string does not end");
        if (peek(s) < ' ') return fault(s, "J-1", s->at, "an unescaped control character");
        if (peek(s) == '\\') {
            if (!scan_escape(s, name)) return false;
            continue;
        }
        size_t run = s->at;
        while (peek(s) >= ' ' && peek(s) != '"' && peek(s) != '\\') s->at++;
        put_bytes(&s->copy, s->text + run, s->at - run);
    }
    s->at++;
    put_text(&s->copy, "\"");
    return true;
}

static bool scan_value(scanner *s, int depth);

/* An object or an array, at the given depth. */
static bool scan_members(scanner *s, int depth) {
    bool object = peek(s) == '{';
    int close = object ? '}' : ']';
    if (depth > MAX_DEPTH && !s->lax) return fault(s, "J-4", s->at, "nested deeper than 16");
    if (depth > LAX_DEPTH) return unsupported(s->f, NULL, "nested deeper than %d", LAX_DEPTH);
    put_text(&s->copy, object ? "{" : "[");
    s->at++;
    skip_space(s);
    for (size_t count = 0; count > 0 || peek(s) != close;) {
        size_t mark = s->copy.size;
        uint64_t wide = s->wide;
        if (count > 0) put_text(&s->copy, ",");
        if (object) {
            if (!scan_string(s, true)) return false;
            skip_space(s);
            if (peek(s) != ':') return fault(s, "J-1", s->at, "no : after the name of a member");
            put_text(&s->copy, ":");
            s->at++;
            skip_space(s);
        }
        if (!scan_value(s, depth + 1)) return false;
        count++;
        if (object && count == 2) s->wide++;
        /* So that 10^8 bytes of `[],[],[],` do not cost gigabytes; but what J-2 speaks of stays. */
        if (!object && count > MAX_RANK + 1 && s->wide == wide) s->copy.size = mark;
        skip_space(s);
        if (peek(s) == close) break;
        if (peek(s) != ',') return fault(s, "J-1", s->at, "neither a comma nor the end");
        s->at++;
        skip_space(s);
    }
    put_text(&s->copy, object ? "}" : "]");
    s->at++;
    return true;
}

static bool scan_value(scanner *s, int depth) {
    static const char *const words[] = {"true", "false", "null"};
    static const char *const lax_words[] = {"NaN", "Infinity", "-Infinity"};
    for (int i = 0; i < 3; i++) {
        if (s->lax && skip_word(s, lax_words[i])) return true;
        if (skip_word(s, words[i])) {
            put_text(&s->copy, words[i]);
            return true;
        }
    }
    int c = peek(s);
    if (c == '"') return scan_string(s, false);
    if (c == '{' || c == '[') return scan_members(s, depth);
    if (c == '-' || (c >= '0' && c <= '9')) return scan_number(s);
    return fault(s, "J-1", s->at, "not a JSON value");
}

static bool scan_object(scanner *s) {
    return peek(s) == '{' ? scan_members(s, 1) : fault(s, "J-1", s->at, "not an object");
}

static bool scan_end(scanner *s) {
    skip_space(s);
    return s->at == s->size || fault(s, "J-1", s->at, "something follows the object");
}

/* The tree of what has been scanned. */
static json_t *build(scanner *s) {
    json_error_t error;
    json_t *tree = NULL;
    if (!s->copy.failed)
        tree =
            json_loadb(s->copy.data, s->copy.size, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    if (s->copy.failed || exhausted) {
        json_decref(tree);
        no_memory(s->f);
        return NULL;
    }
    if (tree == NULL && json_error_code(&error) == json_error_duplicate_key)
        reject(s->f, "J-2", NULL, NOWHERE, "%s", show(error.text).text);
    else if (tree == NULL)
        unsupported(s->f, NULL, "jansson: %s", show(error.text).text);
    return tree;
}

json_t *json_read(const char *text, size_t size, size_t *end, failure *f) {
    scanner s = {.text = text, .size = size, .f = f};
    json_t *tree = scan_object(&s) ? build(&s) : NULL;
    *end = s.at;
    buffer_free(&s.copy);
    return tree;
}

json_t *json_read_all(const char *text, size_t size, failure *f) {
    scanner s = {.text = text, .size = size, .f = f};
    skip_space(&s);
    json_t *tree = scan_object(&s) && scan_end(&s) ? build(&s) : NULL;
    buffer_free(&s.copy);
    return tree;
}

bool json_check_lax(const char *text, size_t size, failure *f) {
    scanner s = {.text = text, .size = size, .f = f, .lax = true};
    skip_space(&s);
    bool good = scan_object(&s) && scan_end(&s);
    buffer_free(&s.copy);
    return good;
}
