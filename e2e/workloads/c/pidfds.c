/* pidfds: of a child, of the process itself, of a dead child that was reaped and of one that was not, of threads, of a process
 * that is none of ours; several of the same, in an epoll set. */
#include "workload.h"
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL
#endif

static int pidfd(pid_t pid, unsigned flags)
{
	int fd = syscall(SYS_pidfd_open, pid, flags);
	CHECK(fd >= 0, "pidfd_open %d", pid);
	return fd;
}
static int signal_by(int fd, int sig) { return syscall(SYS_pidfd_send_signal, fd, sig, NULL, 0); }
static int is_over(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	CHECK(poll(&p, 1, 0) >= 0, "poll");
	return p.revents & POLLIN;
}
static volatile pid_t tid;
static void *thread(void *arg)
{
	tid = gettid();
	while (1)
		pause();
	return arg;
}
static pid_t sleeper(void)
{
	pid_t p = fork();
	if (!p) {
		while (1)
			pause();
	}
	return p;
}

int main(void)
{
	pthread_t t;
	sigset_t term, old;
	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	pid_t child = sleeper(), zombie = fork();
	if (!zombie)
		_exit(3);
	pid_t reaped = fork();
	if (!reaped)
		_exit(5);
	int dead = pidfd(reaped, 0), dead2 = pidfd(reaped, O_NONBLOCK), undead = pidfd(zombie, 0);
	CHECK(waitpid(reaped, NULL, 0) == reaped, "waitpid");
	siginfo_t si;
	CHECK(!waitid(P_PID, zombie, &si, WEXITED | WNOWAIT), "waitid");
	pthread_sigmask(SIG_BLOCK, &term, &old);
	CHECK(!pthread_create(&t, NULL, thread, NULL), "pthread_create");
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	while (!tid)
		usleep(1000);
	int self = pidfd(getpid(), 0), kid = pidfd(child, O_NONBLOCK), kid2 = pidfd(child, 0), other = syscall(SYS_pidfd_open, 1, 0);
	int th = syscall(SYS_pidfd_open, tid, PIDFD_THREAD);
	int ep = epoll_create1(0);
	struct epoll_event ev = {.events = EPOLLIN, .data.u32 = 77}, out;
	CHECK(!epoll_ctl(ep, EPOLL_CTL_ADD, kid, &ev), "epoll_ctl");
	ready();
	CHECK(!signal_by(self, 0) && !is_over(self), "self");
	CHECK(!signal_by(kid, 0) && !signal_by(kid2, 0) && !is_over(kid), "child");
	CHECK((fcntl(kid, F_GETFL) & O_NONBLOCK) && !(fcntl(kid2, F_GETFL) & O_NONBLOCK), "flags");
	CHECK(signal_by(dead, 0) && errno == ESRCH && is_over(dead), "dead");
	CHECK(signal_by(dead2, 0) && errno == ESRCH && is_over(dead2) && (fcntl(dead2, F_GETFL) & O_NONBLOCK), "dead, second");
	struct stat a, b;
	CHECK(!fstat(dead, &a) && !fstat(dead2, &b) && a.st_ino == b.st_ino && !fstat(self, &b) && a.st_ino != b.st_ino, "inodes");
	CHECK(!fstat(kid, &a) && !fstat(kid2, &b) && a.st_ino == b.st_ino, "inodes of the child");
	CHECK(is_over(undead), "zombie");
	si.si_pid = 0;
	CHECK(!waitid(P_PIDFD, undead, &si, WEXITED) && si.si_pid == zombie && si.si_status == 3, "wait for the zombie: pid %d status %d", si.si_pid, si.si_status);
	CHECK(other < 0 || !is_over(other), "pid 1");
	CHECK(th < 0 || (!is_over(th) && (fcntl(th, F_GETFL) & PIDFD_THREAD) && !signal_by(th, 0)), "thread");
	CHECK(epoll_wait(ep, &out, 1, 0) == 0, "epoll before");
	CHECK(!signal_by(kid2, SIGKILL), "kill");
	CHECK(epoll_wait(ep, &out, 1, 5000) == 1 && out.data.u32 == 77, "epoll");
	si.si_pid = 0;
	CHECK(!waitid(P_PIDFD, kid2, &si, WEXITED) && si.si_pid == child && si.si_status == SIGKILL, "wait by pidfd");
	pass();
}
