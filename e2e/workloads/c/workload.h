/*
 * The frame of a workload: one behaviour of the kernel, set up, left alone while the process is moved, then checked
 * from inside.
 *
 *     int main(void) {
 *         ...set up...
 *         ready();             // the harness may now dump, restore or move the process
 *         ...
 *         CHECK(cond, ...);    // after the harness has said so
 *         pass();
 *     }
 *
 * The working directory is the workload's own. ready() writes the file "ready" and waits for SIGTERM.
 */
#ifndef WORKLOAD_H
#define WORKLOAD_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static inline void put_file(const char *name, const char *text)
{
	char tmp[64];
	snprintf(tmp, sizeof tmp, ".%s.%d", name, getpid());
	int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC, 0644);
	if (fd < 0 || write(fd, text, strlen(text)) < 0 || close(fd) || rename(tmp, name))
		_exit(99);
}

__attribute__((format(printf, 1, 2), noreturn)) static inline void fail(const char *fmt, ...)
{
	char text[512];
	int e = errno;
	va_list ap;
	va_start(ap, fmt);
	int n = vsnprintf(text, sizeof text - 64, fmt, ap);
	va_end(ap);
	snprintf(text + n, sizeof text - n, " (errno %d, %s)\n", e, strerror(e));
	put_file("result", text);
	_exit(1);
}

#define CHECK(cond, ...)                 \
	do {                             \
		if (!(cond))             \
			fail(__VA_ARGS__); \
	} while (0)

static inline void pass(void)
{
	put_file("result", "pass\n");
	exit(0);
}

static volatile sig_atomic_t told;
/* on_term passes the word on to the first thread, which is the one that waits for it. Only there it counts, or the signal would come to
 * a first thread that waits no more. */
static inline void on_term(int sig)
{
	if (syscall(SYS_gettid) == getpid())
		told = 1;
	else
		syscall(SYS_tgkill, getpid(), getpid(), sig);
}

/* announce says that the set-up is done; the caller then goes on with what it does and looks at told. No call of it fails with EINTR,
 * since a peer may be told while it still reads. */
static inline void announce(void)
{
	struct sigaction sa = {.sa_handler = on_term, .sa_flags = SA_RESTART};
	sigaction(SIGTERM, &sa, NULL);
	char pid[32];
	snprintf(pid, sizeof pid, "%d\n", getpid());
	put_file("ready", pid);
}

/* ready announces and sleeps until the harness says that the process has been moved. */
static inline void ready(void)
{
	sigset_t block, old;
	sigemptyset(&block);
	sigaddset(&block, SIGTERM);
	sigprocmask(SIG_BLOCK, &block, &old);
	announce();
	while (!told)
		sigsuspend(&old);
	sigprocmask(SIG_SETMASK, &old, NULL);
}

/* await_asleep waits until a thread has come to sleep in the kernel, in the call that it is about to make. */
static inline void await_asleep(pid_t pid, pid_t tid)
{
	for (char state = 0; state != 'S'; usleep(500)) {
		char name[64], line[512] = "", *end;
		snprintf(name, sizeof name, "/proc/%d/task/%d/stat", pid, tid);
		int fd = open(name, O_RDONLY);
		CHECK(fd >= 0 && read(fd, line, sizeof line - 1) > 0 && !close(fd) && (end = strrchr(line, ')')), "%s", name);
		state = end[2];
	}
}

static inline double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

#endif
