/* Preloaded into Python: counts the calls of libc that reach the file system, and fails one of them, or ends or
   interrupts the process there. Calls on the standard streams do not count. Only the process that has called
   faults_arm is concerned. strace shows whether calls are missing here: see sweep.py. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define LOGGED 65536

enum { NONE, ERROR, ERRORS, INTERRUPT, INTERRUPTS, KILL };

/* What the forked process shares with its parent. */
struct shared {
    atomic_int count;             /* calls so far */
    int when, what, code;         /* at which call, what, and which errno */
    int exchange, locks;          /* 0: the file system lacks them */
    int flush;                    /* 0: flushing is left out, as it takes long and nobody pulls the plug here */
    unsigned char names[LOGGED];  /* of each call, as a letter of NAMES in sweep.py */
};

static struct shared *shared;
static int armed;

void faults_arm(struct shared *with) {
    shared = with;
    armed = with != NULL;
    /* For those who look at the calls from outside. */
    syscall(SYS_access, armed ? "/faults armed" : "/faults disarmed", F_OK);
}

/* The errno that this call has to fail with, or 0. */
static int fault(char name) {
    if (!armed) return 0;
    int at = atomic_fetch_add(&shared->count, 1);
    if (at < LOGGED) shared->names[at] = (unsigned char)name;
    int lasting = shared->what == ERRORS || shared->what == INTERRUPTS;
    if (at != shared->when && !(lasting && at > shared->when)) return 0;
    switch (shared->what) {
    case ERROR:
    case ERRORS: return shared->code;
    case INTERRUPT:
    case INTERRUPTS: kill(getpid(), SIGINT); return 0;
    case KILL:
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    return 0;
}

static int standard(int descriptor) { return descriptor >= 0 && descriptor <= 2; }

#define REAL(result, function, parameters) \
    static result (*real) parameters;     \
    if (!real) real = (result (*) parameters)dlsym(RTLD_NEXT, #function)

#define FAIL(name, failed)          \
    do {                            \
        int code = fault(name);     \
        if (code) {                 \
            errno = code;           \
            return failed;          \
        }                           \
    } while (0)

/* A call with a path, or with a directory and a path. */
#define CALL(result, function, name, failed, parameters, arguments) \
    result function parameters {                                    \
        REAL(result, function, parameters);                         \
        FAIL(name, failed);                                         \
        return real arguments;                                      \
    }

/* A call with a descriptor, named d. */
#define ON_OPEN(result, function, name, parameters, arguments)  \
    result function parameters {                                \
        REAL(result, function, parameters);                     \
        if (!standard(d)) FAIL(name, -1);                       \
        return real arguments;                                  \
    }

static char opening(int flags) { return flags & (O_WRONLY | O_RDWR | O_CREAT) ? 'O' : 'o'; }

#define OPEN(function)                                          \
    int function(const char *p, int flags, ...) {               \
        REAL(int, function, (const char *, int, ...));          \
        va_list rest;                                           \
        va_start(rest, flags);                                  \
        mode_t mode = va_arg(rest, mode_t);                     \
        va_end(rest);                                           \
        FAIL(opening(flags), -1);                               \
        return real(p, flags, mode);                            \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(function)                                        \
    int function(int d, const char *p, int flags, ...) {        \
        REAL(int, function, (int, const char *, int, ...));     \
        va_list rest;                                           \
        va_start(rest, flags);                                  \
        mode_t mode = va_arg(rest, mode_t);                     \
        va_end(rest);                                           \
        FAIL(opening(flags), -1);                               \
        return real(d, p, flags, mode);                         \
    }
OPENAT(openat)
OPENAT(openat64)

/* A descriptor is closed even where close fails. */
int close(int d) {
    REAL(int, close, (int));
    int code = standard(d) ? 0 : fault('c'), result = real(d);
    if (!code) return result;
    errno = code;
    return -1;
}

int fsync(int d) {
    REAL(int, fsync, (int));
    FAIL('f', -1);
    return armed && !shared->flush ? 0 : real(d);
}

int renameat2(int d, const char *from, int e, const char *to, unsigned flags) {
    REAL(int, renameat2, (int, const char *, int, const char *, unsigned));
    if (armed && flags && !shared->exchange) {
        errno = EINVAL;
        return -1;
    }
    FAIL('x', -1);
    return real(d, from, e, to, flags);
}

int flock(int d, int operation) {
    REAL(int, flock, (int, int));
    if (armed && !shared->locks) {
        errno = ENOLCK;
        return -1;
    }
    FAIL('k', -1);
    return real(d, operation);
}

int fcntl64(int d, int command, ...) {
    REAL(int, fcntl64, (int, int, ...));
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    if (!standard(d)) FAIL('n', -1);
    return real(d, command, argument);
}

int ioctl(int d, unsigned long request, ...) {
    REAL(int, ioctl, (int, unsigned long, ...));
    va_list rest;
    va_start(rest, request);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    if (!standard(d)) FAIL('v', -1);
    return real(d, request, argument);
}

/* Memory that is not of a file is asked for all the time. */
void *mmap64(void *at, size_t length, int protection, int flags, int d, off64_t offset) {
    REAL(void *, mmap64, (void *, size_t, int, int, int, off64_t));
    if (!(flags & MAP_ANONYMOUS)) FAIL('p', MAP_FAILED);
    return real(at, length, protection, flags, d, offset);
}

/* The end of a directory leaves errno as it is. */
struct dirent64 *readdir64(DIR *directory) {
    REAL(struct dirent64 *, readdir64, (DIR *));
    FAIL('d', NULL);
    return real(directory);
}

CALL(DIR *, opendir, 'e', NULL, (const char *p), (p))
CALL(DIR *, fdopendir, 'e', NULL, (int d), (d))
CALL(int, closedir, 'c', -1, (DIR *p), (p))
CALL(int, rename, 'r', -1, (const char *a, const char *b), (a, b))
CALL(int, renameat, 'r', -1, (int d, const char *a, int e, const char *b), (d, a, e, b))
CALL(int, link, 'l', -1, (const char *a, const char *b), (a, b))
CALL(int, linkat, 'l', -1, (int d, const char *a, int e, const char *b, int f), (d, a, e, b, f))
CALL(int, symlink, 'l', -1, (const char *a, const char *b), (a, b))
CALL(int, unlink, 'u', -1, (const char *p), (p))
CALL(int, unlinkat, 'u', -1, (int d, const char *p, int f), (d, p, f))
CALL(int, rmdir, 'u', -1, (const char *p), (p))
CALL(int, mkdir, 'm', -1, (const char *p, mode_t m), (p, m))
CALL(int, mkdirat, 'm', -1, (int d, const char *p, mode_t m), (d, p, m))
CALL(int, chmod, 'h', -1, (const char *p, mode_t m), (p, m))
CALL(int, fchmodat, 'h', -1, (int d, const char *p, mode_t m, int f), (d, p, m, f))
CALL(int, access, 'a', -1, (const char *p, int m), (p, m))
CALL(int, faccessat, 'a', -1, (int d, const char *p, int m, int f), (d, p, m, f))
CALL(int, stat64, 's', -1, (const char *p, struct stat64 *s), (p, s))
CALL(int, lstat64, 's', -1, (const char *p, struct stat64 *s), (p, s))
CALL(int, fstatat64, 's', -1, (int d, const char *p, struct stat64 *s, int f), (d, p, s, f))
CALL(int, statvfs64, 's', -1, (const char *p, struct statvfs64 *s), (p, s))
CALL(ssize_t, readlink, 'y', -1, (const char *p, char *t, size_t n), (p, t, n))
CALL(ssize_t, readlinkat, 'y', -1, (int d, const char *p, char *t, size_t n), (d, p, t, n))
CALL(int, utimensat, 't', -1, (int d, const char *p, const struct timespec s[2], int f), (d, p, s, f))
CALL(char *, getcwd, 'g', NULL, (char *p, size_t n), (p, n))
ON_OPEN(int, fstat64, 's', (int d, struct stat64 *s), (d, s))
ON_OPEN(int, fstatvfs64, 's', (int d, struct statvfs64 *s), (d, s))
ON_OPEN(int, fchmod, 'h', (int d, mode_t m), (d, m))
ON_OPEN(int, futimens, 't', (int d, const struct timespec s[2]), (d, s))
ON_OPEN(int, ftruncate64, 'z', (int d, off64_t n), (d, n))
ON_OPEN(off64_t, lseek64, 'j', (int d, off64_t n, int w), (d, n, w))
ON_OPEN(ssize_t, read, 'R', (int d, void *p, size_t n), (d, p, n))
ON_OPEN(ssize_t, pread64, 'R', (int d, void *p, size_t n, off64_t o), (d, p, n, o))
ON_OPEN(ssize_t, preadv64v2, 'R', (int d, const struct iovec *v, int n, off64_t o, int f), (d, v, n, o, f))
ON_OPEN(ssize_t, write, 'w', (int d, const void *p, size_t n), (d, p, n))
ON_OPEN(ssize_t, pwrite64, 'w', (int d, const void *p, size_t n, off64_t o), (d, p, n, o))
ON_OPEN(ssize_t, writev, 'w', (int d, const struct iovec *v, int n), (d, v, n))
