/* A pipe with contents, its capacity, both ends in one process, and one end shared with a child. */
#include "workload.h"

int main(void)
{
	int p[2], q[2];
	CHECK(!pipe(p) && !pipe2(q, O_NONBLOCK | O_CLOEXEC), "pipe");
	CHECK(fcntl(p[1], F_SETPIPE_SZ, 1 << 17) == 1 << 17, "F_SETPIPE_SZ");
	char block[30000];
	for (unsigned i = 0; i < sizeof block; i++)
		block[i] = i * 7;
	CHECK(write(p[1], block, sizeof block) == sizeof block, "write");
	pid_t child = fork();
	CHECK(child >= 0, "fork");
	if (!child) {
		close(p[0]);
		close(p[1]);
		char b;
		close(q[0]);
		sigset_t s;
		sigemptyset(&s);
		sigaddset(&s, SIGUSR1);
		sigprocmask(SIG_BLOCK, &s, NULL);
		put_file("child", "up");
		int sig;
		sigwait(&s, &sig);
		b = 'k';
		_exit(write(q[1], &b, 1) == 1 ? 7 : 8);
	}
	close(q[1]);
	while (access("child", F_OK))
		usleep(1000);
	ready();
	char back[sizeof block];
	CHECK(fcntl(p[1], F_GETPIPE_SZ) == 1 << 17, "capacity is %d", fcntl(p[1], F_GETPIPE_SZ));
	CHECK(read(p[0], back, sizeof back) == sizeof back && !memcmp(block, back, sizeof back), "contents differ");
	char b;
	CHECK(read(q[0], &b, 1) == -1 && errno == EAGAIN, "the empty pipe does not say EAGAIN");
	CHECK((fcntl(q[0], F_GETFL) & O_NONBLOCK) && (fcntl(q[0], F_GETFD) & FD_CLOEXEC), "flags of the pipe");
	CHECK(!kill(child, SIGUSR1), "kill");
	int st;
	CHECK(waitpid(child, &st, 0) == child && WIFEXITED(st) && WEXITSTATUS(st) == 7, "child status %x", st);
	CHECK(read(q[0], &b, 1) == 1 && b == 'k', "the child's byte");
	CHECK(read(q[0], &b, 1) == 0, "no end of file after the child");
	pass();
}
