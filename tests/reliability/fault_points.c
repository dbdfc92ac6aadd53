/* Stops a process at the n-th file-system call below a folder: kill -9, or Ctrl-C. Loaded with LD_PRELOAD; see
   interrupted_writes.py, which arms it. Counts calls that change or open something, whichever library makes them, and
   what is sent over sockets. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_FD 4096
static char root[PATH_MAX];
static int target, stop_signal, armed;
static volatile int calls;
static char below[MAX_FD];

void arm(const char *folder, int n, int with_signal) {
    strncpy(root, folder, sizeof root - 1);
    target = n, stop_signal = with_signal, calls = 0, armed = 1;
}
int counted(void) { return calls; }

static void point(int relevant) {
    if (armed && relevant && ++calls == target) kill(getpid(), stop_signal);
}
static int is_below(int directory, const char *path) {
    char resolved[PATH_MAX];
    if (!armed || !path) return 0;
    if (path[0] == '/') return strncmp(path, root, strlen(root)) == 0;
    if (directory >= 0 && directory < MAX_FD) return below[directory];
    if (!getcwd(resolved, sizeof resolved)) return 0;
    return strncmp(resolved, root, strlen(root)) == 0;
}
static int known(int fd) { return armed && fd >= 0 && fd < MAX_FD && below[fd]; }
static int noted(int fd, int relevant) {
    if (armed && fd >= 0 && fd < MAX_FD) below[fd] = (char)relevant;
    return fd;
}
#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list rest; va_start(rest, flags); \
        int mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, int) : 0; \
        va_end(rest); \
        int relevant = is_below(AT_FDCWD, path); \
        point(relevant); \
        return noted(real(path, flags, mode), relevant); \
    }
OPEN(open)
OPEN(open64)
#define OPENAT(name) \
    int name(int directory, const char *path, int flags, ...) { \
        REAL(name); \
        va_list rest; va_start(rest, flags); \
        int mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, int) : 0; \
        va_end(rest); \
        int relevant = is_below(directory, path); \
        point(relevant); \
        return noted(real(directory, path, flags, mode), relevant); \
    }
OPENAT(openat)
OPENAT(openat64)
#define FOPEN(name) \
    FILE *name(const char *path, const char *mode) { \
        REAL(name); \
        int relevant = is_below(AT_FDCWD, path); \
        point(relevant); \
        FILE *made = real(path, mode); \
        if (made) noted(fileno(made), relevant); \
        return made; \
    }
FOPEN(fopen)
FOPEN(fopen64)
/* Of the many writes into a buffer, the first of a file counts. */
size_t fwrite(const void *data, size_t size, size_t count, FILE *file) {
    REAL(fwrite);
    int fd = armed ? fileno(file) : -1;
    if (known(fd) && below[fd] == 1) point(1), below[fd] = 2;
    return real(data, size, count, file);
}
int fclose(FILE *file) {
    REAL(fclose);
    int fd = armed ? fileno(file) : -1;
    point(known(fd));
    noted(fd, 0);
    return real(file);
}
#define ON_FD(type, name, parameters, arguments) \
    type name parameters { \
        REAL(name); \
        point(known(fd)); \
        return real arguments; \
    }
ON_FD(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size))
ON_FD(int, fsync, (int fd), (fd))
ON_FD(int, fdatasync, (int fd), (fd))
ON_FD(int, ftruncate, (int fd, off_t size), (fd, size))
ON_FD(int, ftruncate64, (int fd, off64_t size), (fd, size))
ON_FD(int, flock, (int fd, int operation), (fd, operation))
ssize_t send(int fd, const void *data, size_t size, int flags) {
    REAL(send);
    point(1);
    return real(fd, data, size, flags);
}
int close(int fd) {
    REAL(close);
    point(known(fd));
    noted(fd, 0);
    return real(fd);
}
#define ON_PATH(name, parameters, arguments, directory, path) \
    int name parameters { \
        REAL(name); \
        point(is_below(directory, path)); \
        return real arguments; \
    }
ON_PATH(rename, (const char *old, const char *new), (old, new), AT_FDCWD, new)
ON_PATH(renameat, (int a, const char *old, int b, const char *new), (a, old, b, new), b, new)
ON_PATH(renameat2, (int a, const char *old, int b, const char *new, unsigned flags), (a, old, b, new, flags), b, new)
ON_PATH(unlink, (const char *path), (path), AT_FDCWD, path)
ON_PATH(unlinkat, (int a, const char *path, int flags), (a, path, flags), a, path)
ON_PATH(mkdir, (const char *path, mode_t mode), (path, mode), AT_FDCWD, path)
ON_PATH(mkdirat, (int a, const char *path, mode_t mode), (a, path, mode), a, path)
ON_PATH(rmdir, (const char *path), (path), AT_FDCWD, path)
ON_PATH(chmod, (const char *path, mode_t mode), (path, mode), AT_FDCWD, path)
ON_PATH(link, (const char *old, const char *new), (old, new), AT_FDCWD, new)
ON_PATH(symlink, (const char *to, const char *path), (to, path), AT_FDCWD, path)
