/* A library loaded before libc (LD_PRELOAD) that lets system calls fail, kills the process at one of them, or keeps a
   journal of them, for benchmarks/faults.py. Only what touches files below one folder counts.

   Build: cc -shared -fPIC -O1 -o faults.so faults.c -ldl
   Armed through ctypes, after a fork. Linux alone: it asks /proc/self/fd for the path of a descriptor. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { OFF, COUNT, FAIL, FULL, KILL, TEAR, CLOCK };
enum { GO, STOP };

static int mode, number, locks, reading;
static long at, calls;
static double shift, later;
static char root[PATH_MAX], journal[PATH_MAX];
static int log_file = -1, saved;

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = dlsym(RTLD_NEXT, #name)

/* mode: as above. k: the call that is hit, from 0. error: errno of FAIL and FULL. folder: what counts. path: the
   journal, "" for none. lock_error: errno of flock, 0 for none. reads: calls that read count in the place of those that
   write. seconds: by which the clock jumps at call k under CLOCK. */
void faults_arm(int how, long k, int error, const char *folder, const char *path, int lock_error, int reads,
                double seconds) {
    snprintf(root, sizeof root, "%s", folder);
    snprintf(journal, sizeof journal, "%s", path);
    at = k; number = error; locks = lock_error; reading = reads; calls = 0; shift = 0; later = seconds;
    if (*journal) log_file = syscall(SYS_openat, AT_FDCWD, journal, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600);
    mode = how;
}

long faults_calls(void) { return calls; }

static int inside(const char *path) {
    size_t length = strlen(root);
    return mode && length && !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

static int of_fd(int fd, char *path) {
    char name[64];
    if (!mode || fd < 3) return 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(name, path, PATH_MAX - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return inside(path);
}

static int full_path(int dir, const char *path, char *whole) {
    if (!mode || !path) return 0;
    if (*path == '/') snprintf(whole, PATH_MAX, "%s", path);
    else {
        char base[PATH_MAX];
        if (dir == AT_FDCWD) { if (!getcwd(base, sizeof base)) return 0; }
        else {
            char name[64];
            snprintf(name, sizeof name, "/proc/self/fd/%d", dir);
            ssize_t n = readlink(name, base, sizeof base - 1);
            if (n <= 0) return 0;
            base[n] = 0;
        }
        if (snprintf(whole, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return 0;
    }
    return inside(whole);
}

static void note(const char *what, const char *one, const char *other, int kept) {
    if (log_file < 0) return;
    char line[3 * PATH_MAX];
    int n = snprintf(line, sizeof line, "%s\t%s\t%s\t%d\n", what, one, other ? other : "", kept);
    syscall(SYS_write, log_file, line, (size_t)n);
}

enum { NAMES, DATA, FREES };

/* One call that counts. DATA: TEAR kills in the midst of it. FREES: it gives room back; a full disk lets it pass. */
static int step(int kind) {
    long mine = __atomic_fetch_add(&calls, 1, __ATOMIC_SEQ_CST);
    if (mode == CLOCK && mine == at) shift = later;
    if (mine == at && (mode == KILL || (mode == TEAR && kind != DATA))) kill(getpid(), SIGKILL);
    if ((mode == FAIL && mine == at) || (mode == FULL && mine >= at && kind != FREES)) { errno = number; return STOP; }
    return GO;
}

static int torn(void) { return mode == TEAR && calls == at + 1; }

/* A second name for what is about to be lost, so that its loss can be undone. */
static int keep(const char *path) {
    struct stat there;
    if (log_file < 0 || lstat(path, &there) || !S_ISREG(there.st_mode)) return 0;
    char name[PATH_MAX + 32];
    int mine = ++saved;
    snprintf(name, sizeof name, "%s.%d", journal, mine);
    return link(path, name) ? 0 : mine;
}

static int opened(const char *path, int flags) {
    int writes = (flags & O_ACCMODE) != O_RDONLY;
    if (reading ? writes || flags & O_DIRECTORY : !writes || !(flags & (O_CREAT | O_TRUNC))) return GO;
    if (step(NAMES)) return STOP;
    if (!reading && (flags & O_TRUNC)) note("dirty", path, 0, 0);
    return GO;
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, name, const char *, int, ...); \
        va_list more; va_start(more, flags); mode_t bits = va_arg(more, int); va_end(more); \
        char whole[PATH_MAX]; \
        if (full_path(AT_FDCWD, path, whole) && opened(whole, flags)) return -1; \
        return real(path, flags, bits); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int dir, const char *path, int flags, ...) { \
        REAL(int, name, int, const char *, int, ...); \
        va_list more; va_start(more, flags); mode_t bits = va_arg(more, int); va_end(more); \
        char whole[PATH_MAX]; \
        if (full_path(dir, path, whole) && opened(whole, flags)) return -1; \
        return real(dir, path, flags, bits); \
    }
OPENAT(openat)
OPENAT(openat64)

#define WRITES(type, name, params, args, length, tear) \
    type name params { \
        REAL(type, name, TYPES_##name); \
        char path[PATH_MAX]; \
        if (!reading && of_fd(fd, path)) { \
            if (step(DATA)) return -1; \
            note("dirty", path, 0, 0); \
            if (torn()) { tear; kill(getpid(), SIGKILL); } \
        } \
        return real args; \
    }
#define TYPES_write int, const void *, size_t
#define TYPES_pwrite int, const void *, size_t, off_t
#define TYPES_pwrite64 int, const void *, size_t, off64_t
#define TYPES_writev int, const struct iovec *, int
#define TYPES_ftruncate int, off_t
#define TYPES_ftruncate64 int, off64_t
WRITES(ssize_t, write, (int fd, const void *data, size_t n), (fd, data, n), n, real(fd, data, n / 2))
WRITES(ssize_t, pwrite, (int fd, const void *data, size_t n, off_t o), (fd, data, n, o), n, real(fd, data, n / 2, o))
WRITES(ssize_t, pwrite64, (int fd, const void *data, size_t n, off64_t o), (fd, data, n, o), n, real(fd, data, n / 2, o))
WRITES(ssize_t, writev, (int fd, const struct iovec *data, int n), (fd, data, n), n, real(fd, data, n / 2))
WRITES(int, ftruncate, (int fd, off_t n), (fd, n), n, (void)0)
WRITES(int, ftruncate64, (int fd, off64_t n), (fd, n), n, (void)0)

#define ALLOCATES(name, type) \
    int name(int fd, type from, type n) { \
        REAL(int, name, int, type, type); \
        char path[PATH_MAX]; \
        if (!reading && of_fd(fd, path)) { if (step(NAMES)) return errno; note("dirty", path, 0, 0); } \
        return real(fd, from, n); \
    }
ALLOCATES(posix_fallocate, off_t)
ALLOCATES(posix_fallocate64, off64_t)

size_t fwrite(const void *data, size_t size, size_t n, FILE *stream) {
    REAL(size_t, fwrite, const void *, size_t, size_t, FILE *);
    char path[PATH_MAX];
    if (mode && !reading && of_fd(fileno(stream), path)) {
        if (step(DATA)) return 0;
        note("dirty", path, 0, 0);
        if (torn()) { real(data, size, n / 2, stream); fflush(stream); kill(getpid(), SIGKILL); }
    }
    return real(data, size, n, stream);
}

#define READS(type, name, params, args) \
    type name params { \
        REAL(type, name, TYPES_##name); \
        char path[PATH_MAX]; \
        if (reading && of_fd(fd, path) && step(NAMES)) return -1; \
        return real args; \
    }
#define TYPES_read int, void *, size_t
#define TYPES_pread int, void *, size_t, off_t
#define TYPES_pread64 int, void *, size_t, off64_t
READS(ssize_t, read, (int fd, void *data, size_t n), (fd, data, n))
READS(ssize_t, pread, (int fd, void *data, size_t n, off_t o), (fd, data, n, o))
READS(ssize_t, pread64, (int fd, void *data, size_t n, off64_t o), (fd, data, n, o))

#define MAPS(name, type) \
    void *name(void *where, size_t n, int prot, int flags, int fd, type from) { \
        REAL(void *, name, void *, size_t, int, int, int, type); \
        char path[PATH_MAX]; \
        if (!reading && (prot & PROT_WRITE) && (flags & MAP_SHARED) && of_fd(fd, path)) note("dirty", path, 0, 0); \
        return real(where, n, prot, flags, fd, from); \
    }
MAPS(mmap, off_t)
MAPS(mmap64, off64_t)

#define SYNCS(name) \
    int name(int fd) { \
        REAL(int, name, int); \
        char path[PATH_MAX]; \
        if (!reading && of_fd(fd, path)) { if (step(NAMES)) return -1; note("sync", path, 0, 0); return 0; } \
        return real(fd); \
    }
SYNCS(fsync)
SYNCS(fdatasync)

static int renamed(int from, const char *one, int to, const char *other, int (*call)(int, const char *, int, const char *)) {
    char a[PATH_MAX], b[PATH_MAX];
    if (reading || !full_path(from, one, a) || !full_path(to, other, b)) return call(from, one, to, other);
    if (step(NAMES)) return -1;
    int kept = keep(b);
    int found = call(from, one, to, other);
    if (!found) note("rename", a, b, kept);
    return found;
}
static int plain_rename(int from, const char *one, int to, const char *other) {
    REAL(int, renameat, int, const char *, int, const char *);
    return real(from, one, to, other);
}
int rename(const char *one, const char *other) { return renamed(AT_FDCWD, one, AT_FDCWD, other, plain_rename); }
int renameat(int from, const char *one, int to, const char *other) { return renamed(from, one, to, other, plain_rename); }

#define UNLINKS(name, params, args, dir) \
    int name params { \
        REAL(int, name, TYPES_##name); \
        char whole[PATH_MAX]; \
        if (reading || !full_path(dir, path, whole)) return real args; \
        if (step(FREES)) return -1; \
        int kept = keep(whole); \
        int found = real args; \
        if (!found) note("unlink", whole, 0, kept); \
        return found; \
    }
#define TYPES_unlink const char *
#define TYPES_unlinkat int, const char *, int
UNLINKS(unlink, (const char *path), (path), AT_FDCWD)
UNLINKS(unlinkat, (int from, const char *path, int flags), (from, path, flags), from)

int mkdir(const char *path, mode_t bits) {
    REAL(int, mkdir, const char *, mode_t);
    char whole[PATH_MAX];
    if (!reading && full_path(AT_FDCWD, path, whole) && step(NAMES)) return -1;
    return real(path, bits);
}

int flock(int fd, int how) {
    REAL(int, flock, int, int);
    char path[PATH_MAX];
    if (locks && of_fd(fd, path)) { errno = locks; return -1; }
    return real(fd, how);
}

int clock_gettime(clockid_t which, struct timespec *now) {
    REAL(int, clock_gettime, clockid_t, struct timespec *);
    int found = real(which, now);
    if (which == CLOCK_REALTIME) now->tv_sec += (time_t)shift;
    return found;
}
