/* Stopped children: one about whose stop the parent has yet to hear, one about which it has, one with threads that was
 * stopped by SIGTSTP in a group of its own. All go on when they are told, and none is announced twice. */
#include "workload.h"
#include <pthread.h>

static volatile sig_atomic_t heard;
static void on_chld(int sig) { (void)sig; heard++; }
static volatile int beats;
static void *beat(void *arg)
{
	for (;;) {
		beats++;
		usleep(1000);
	}
	return arg;
}

static pid_t child(int threads)
{
	pid_t pid = fork();
	if (pid)
		return pid;
	signal(SIGCHLD, SIG_DFL);
	if (threads == 2)
		setpgid(0, 0); /* SIGTSTP does nothing to an orphaned group */
	sigset_t s;
	int sig;
	sigemptyset(&s), sigaddset(&s, SIGUSR1);
	sigprocmask(SIG_BLOCK, &s, NULL); /* in all threads: else it kills one of them while the first is between two waits */
	pthread_t t;
	for (int i = 0; i < threads; i++)
		pthread_create(&t, NULL, beat, NULL);
	char name[32];
	snprintf(name, sizeof name, "up%d", threads);
	put_file(name, "up");
	sigwait(&s, &sig);
	_exit(20 + threads);
}

static char state(pid_t pid)
{
	char path[64], text[256] = "";
	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	int fd = open(path, O_RDONLY);
	if (read(fd, text, sizeof text - 1) < 0)
		return 0;
	close(fd);
	char *p = strrchr(text, ')');
	return p ? p[2] : 0;
}

int main(void)
{
	pid_t fresh = child(0), told = child(1), tstp = child(2);
	while (access("up0", F_OK) || access("up1", F_OK) || access("up2", F_OK))
		usleep(1000);
	int st;
	signal(SIGCHLD, on_chld);
	CHECK(!kill(fresh, SIGSTOP) && !kill(told, SIGSTOP) && !kill(tstp, SIGTSTP), "kill");
	CHECK(waitpid(told, &st, WUNTRACED) == told && WIFSTOPPED(st) && WSTOPSIG(st) == SIGSTOP, "wait: %x", st);
	siginfo_t si;
	CHECK(!waitid(P_PID, fresh, &si, WSTOPPED | WNOWAIT) && !waitid(P_PID, tstp, &si, WSTOPPED | WNOWAIT), "waitid");
	usleep(20000);
	int before = heard;
	ready();
	CHECK(heard == before, "SIGCHLD came %d times again", heard - before);
	CHECK(state(fresh) == 'T' && state(told) == 'T' && state(tstp) == 'T', "states %c %c %c", state(fresh), state(told), state(tstp));
	CHECK(waitpid(told, &st, WUNTRACED | WNOHANG) == 0, "a stop is told twice: %x", st);
	CHECK(waitpid(fresh, &st, WUNTRACED | WNOHANG) == fresh && WIFSTOPPED(st) && WSTOPSIG(st) == SIGSTOP, "the fresh one: %x", st);
	CHECK(waitpid(tstp, &st, WUNTRACED | WNOHANG) == tstp && WIFSTOPPED(st) && WSTOPSIG(st) == SIGTSTP, "the one by SIGTSTP: %x", st);
	CHECK(!kill(fresh, SIGCONT) && !kill(told, SIGCONT) && !kill(tstp, SIGCONT), "SIGCONT");
	CHECK(waitpid(told, &st, WCONTINUED) == told && WIFCONTINUED(st), "continued: %x", st);
	pid_t all[] = {fresh, told, tstp};
	for (int i = 0; i < 3; i++)
		CHECK(!kill(all[i], SIGUSR1) && waitpid(all[i], &st, 0) == all[i] && WEXITSTATUS(st) == 20 + i, "child %d: %x", i, st);
	pass();
}
