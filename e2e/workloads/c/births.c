/* Processes that are born, write to shared memory and to a pipe, and end all the time: none of them is taken for a stranger. */
#include "workload.h"

static int wait_for(pid_t pid)
{
	int st, r;
	do
		r = waitpid(pid, &st, 0);
	while (r < 0 && errno == EINTR);
	return r == pid ? st : -1;
}

int main(void)
{
	volatile int *count = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int p[2], born = 0;
	CHECK(count != MAP_FAILED && !pipe(p), "set-up");
	announce();
	while (!told) {
		pid_t child = fork();
		CHECK(child >= 0, "fork");
		if (!child) {
			pid_t grandchild = fork();
			if (!grandchild) {
				++*count;
				_exit(write(p[1], "x", 1) != 1);
			}
			_exit(wait_for(grandchild));
		}
		born++;
		CHECK(!wait_for(child), "child %d", born);
		char c = 0;
		CHECK(read(p[0], &c, 1) == 1 && c == 'x', "child %d wrote %d", born, c);
	}
	CHECK(*count == born, "%d of %d children have counted", *count, born);
	pass();
}
