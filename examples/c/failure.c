/* How a call fails: what is wrong, by which rule, and where. And memory that may not be there. */
#include "endor_read.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void fail(
    failure *f, result result, const char *rule, const char *tensor, int64_t offset,
    const char *format, va_list arguments) {
    failure_clear(f);
    f->result = result;
    snprintf(f->rule, sizeof f->rule, "%s", rule);
    f->tensor = tensor ? strdup(tensor) : NULL;
    f->offset = offset;
    vsnprintf(f->message, sizeof f->message, format, arguments);
}

bool reject(
    failure *f, const char *rule, const char *tensor, int64_t offset, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fail(f, REJECT, rule, tensor, offset, format, arguments);
    va_end(arguments);
    return false;
}

bool unsupported(failure *f, const char *tensor, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fail(f, UNSUPPORTED, "", tensor, NOWHERE, format, arguments);
    va_end(arguments);
    return false;
}

bool no_memory(failure *f) {
    return unsupported(f, NULL, "out of memory");
}

void failure_clear(failure *f) {
    free(f->tensor);
    *f = (failure){.result = ACCEPT, .offset = NOWHERE};
}

shown show(const char *text) {
    shown s = {""};
    size_t at = 0;
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (at + 8 > sizeof s.text) {
            strcpy(s.text + at, "...");
            break;
        }
        const char *format = c >= ' ' && c < 0x7F && c != '\\' ? "%c" : "\\x%02x";
        at += (size_t)snprintf(s.text + at, sizeof s.text - at, format, c);
    }
    return s;
}

void *allocate(uint64_t size) {
    /* Pages of a large allocation are zero, and real only once they are touched. */
    return size > SIZE_MAX / 2 ? NULL : calloc(size ? (size_t)size : 1, 1);
}

void *allocate_array(size_t count, size_t size) {
    return calloc(count ? count : 1, size);
}
