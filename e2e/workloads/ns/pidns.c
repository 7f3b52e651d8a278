/* A pid namespace of the tree's own: ids, orphans that come to its pid 1, zombies. */
#include "../c/workload.h"

int main(void)
{
	int fds[2];
	CHECK(!pipe(fds), "pipe");
	pid_t middle = fork();
	if (!middle) {
		pid_t orphan = fork();
		if (!orphan) {
			while (getppid() != 1)
				usleep(1000);
			pid_t self = getpid();
			if (write(fds[1], &self, sizeof self) != sizeof self)
				_exit(1);
			pause();
			_exit(0);
		}
		_exit(7);
	}
	pid_t orphan;
	CHECK(read(fds[0], &orphan, sizeof orphan) == sizeof orphan, "read");
	pid_t session = fork();
	if (!session) {
		setsid();
		pid_t self = getpid();
		if (write(fds[1], &self, sizeof self) != sizeof self)
			_exit(1);
		pause();
		_exit(0);
	}
	pid_t told_pid;
	CHECK(read(fds[0], &told_pid, sizeof told_pid) == sizeof told_pid && told_pid == session, "read");
	ready();
	int status;
	CHECK(getpid() == 1 && !getppid(), "pid %d, parent %d", getpid(), getppid());
	CHECK(waitpid(middle, &status, 0) == middle && WEXITSTATUS(status) == 7, "the zombie");
	CHECK(getsid(session) == session && getpgid(session) == session, "session of the child");
	CHECK(!kill(orphan, SIGKILL) && waitpid(orphan, &status, 0) == orphan && WTERMSIG(status) == SIGKILL, "the orphan");
	CHECK(!kill(session, SIGKILL) && waitpid(session, &status, 0) == session, "the child");
	pass();
}
