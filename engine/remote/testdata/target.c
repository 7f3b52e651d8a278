/* A program that is borrowed: it does one thing, and tells in shared memory (descriptor 3) how that went.
 * struct report: see target_test.go. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct report { volatile int64_t ready, count, bad, done, result, error, micros, signals; };
static struct report *report;

static int64_t now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000LL + t.tv_nsec / 1000; }
static void handler(int sig) { (void)sig; report->signals++; }

/* Sums in general registers, doubles in xmm registers, flags over a loop, and 16 bytes below the stack pointer. */
static void loop(void) {
	report->ready = 1;
	for (;;) {
		uint64_t a = 0x1234, b = 0x5678, red = 0, zone = 0, x9 = 0, x14 = 0, keep = 0, r8 = 8, r9 = 9, r10 = 10;
		double d = 3.0, e = 7.0;
		register uint64_t q8 asm("r8") = r8, q9 asm("r9") = r9, q10 asm("r10") = r10;
		asm volatile(
			"movq %[d], %%xmm9\n movq %[e], %%xmm14\n"
			"movq $0x1111, -8(%%rsp)\n movq $0x2222, -128(%%rsp)\n"
			"mov $3000, %%ecx\n stc\n"
			"1: lea 3(%[a]), %[a]\n lea -1(%[b]), %[b]\n dec %%ecx\n jnz 1b\n" /* dec keeps the carry */
			"mov $0, %%ecx\n adc $0, %%rcx\n mov %%rcx, %[keep]\n"
			"movq -8(%%rsp), %%rcx\n mov %%rcx, %[red]\n movq -128(%%rsp), %%rcx\n mov %%rcx, %[zone]\n"
			"movq %%xmm9, %%rcx\n mov %%rcx, %[x9]\n movq %%xmm14, %%rcx\n mov %%rcx, %[x14]\n"
			: [a] "+r"(a), [b] "+r"(b), [keep] "=m"(keep), [red] "=m"(red), [zone] "=m"(zone), [x9] "=m"(x9), [x14] "=m"(x14),
			  "+r"(q8), "+r"(q9), "+r"(q10)
			: [d] "x"(d), [e] "x"(e)
			: "rcx", "xmm9", "xmm14", "cc", "memory");
		double d9, d14;
		memcpy(&d9, &x9, 8);
		memcpy(&d14, &x14, 8);
		if (a != 0x1234 + 9000 || b != 0x5678 - 3000 || red != 0x1111 || zone != 0x2222 || d9 != 3.0 || d14 != 7.0 || keep != 1 ||
		    q8 != 8 || q9 != 9 || q10 != 10)
			report->bad++;
		report->count++;
	}
}

int main(int argc, char **argv) {
	alarm(100); /* nobody may be left to end it */
	report = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, 3, 0);
	const char *mode = argv[1];
	int ms = argc > 2 ? atoi(argv[2]) : 1000;
	int flags = argc > 3 ? atoi(argv[3]) : 0;
	if (flags) {
		struct sigaction sa = {.sa_handler = handler, .sa_flags = flags > 1 ? SA_RESTART : 0};
		sigaction(SIGUSR1, &sa, 0);
	}
	struct timespec t = {ms / 1000, ms % 1000 * 1000000L};
	int sv[2], fds[2];
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, sv) || pipe(fds)) return 1;
	int ep = epoll_create1(0), word = 0;
	char buf[64];
	if (!strcmp(mode, "loop")) loop();
	if (!strcmp(mode, "seccomp")) { prctl(PR_SET_SECCOMP, 1); loop(); }
	if (!strcmp(mode, "stoploop")) { raise(SIGSTOP); loop(); }
	int64_t start = now(), r = -99;
	errno = 0;
	report->ready = 1;
	if (!strcmp(mode, "nanosleep")) r = nanosleep(&t, 0);
	if (!strcmp(mode, "poll")) { struct pollfd p = {fds[0], POLLIN, 0}; r = poll(&p, 1, ms); }
	if (!strcmp(mode, "futex")) r = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &t, 0, 0);
	if (!strcmp(mode, "epoll_wait")) { struct epoll_event e; r = epoll_wait(ep, &e, 1, ms); }
	if (!strcmp(mode, "select")) { fd_set s; FD_ZERO(&s); FD_SET(fds[0], &s); struct timeval tv = {ms / 1000, ms % 1000 * 1000}; r = select(fds[0] + 1, &s, 0, 0, &tv); }
	if (!strcmp(mode, "sigtimedwait")) { sigset_t s; sigemptyset(&s); sigaddset(&s, SIGUSR2); sigprocmask(SIG_BLOCK, &s, 0); r = sigtimedwait(&s, 0, &t); }
	if (!strcmp(mode, "recv")) { struct timeval tv = {ms / 1000, ms % 1000 * 1000}; setsockopt(sv[0], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv); r = recv(sv[0], buf, 1, 0); }
	if (!strcmp(mode, "read")) r = read(fds[0], buf, 1);
	if (!strcmp(mode, "pause")) r = pause();
	if (!strcmp(mode, "sigsuspend")) { sigset_t all, none; sigfillset(&all); sigprocmask(SIG_SETMASK, &all, 0); sigemptyset(&none); r = sigsuspend(&none); sigprocmask(SIG_SETMASK, &none, 0); }
	report->error = errno;
	report->result = r;
	report->micros = now() - start;
	report->done = 1;
	for (;;) pause();
}
