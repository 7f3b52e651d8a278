/* What SEM_UNDO would undo in an IPC namespace of the tree: a child has taken and given, and its end takes both back. */
#include "../c/workload.h"
#include <sys/ipc.h>
#include <sys/sem.h>

static int set;

static void change(int n, int by)
{
	struct sembuf op = {.sem_num = n, .sem_op = by, .sem_flg = SEM_UNDO | IPC_NOWAIT};
	CHECK(!semop(set, &op, 1), "semaphore %d by %d", n, by);
}

int main(void)
{
	unsigned short values[] = {1, 2, 3}, got[3];
	set = semget(0x77, 3, IPC_CREAT | 0600);
	CHECK(set >= 0 && !semctl(set, 0, SETALL, values), "semaphores");
	int up[2];
	CHECK(!pipe(up), "pipe");
	pid_t pid = fork();
	if (!pid) {
		change(0, -1);
		change(2, 4);
		if (write(up[1], "", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	char c;
	CHECK(read(up[0], &c, 1) == 1, "read");
	ready();
	CHECK(!semctl(set, 0, GETALL, got) && got[0] == 0 && got[1] == 2 && got[2] == 7, "values %d, %d, %d", got[0], got[1], got[2]);
	int st;
	CHECK(!kill(pid, SIGKILL) && waitpid(pid, &st, 0) == pid, "the child");
	CHECK(!semctl(set, 0, GETALL, got) && !memcmp(got, values, sizeof got), "values after its end %d, %d, %d", got[0], got[1], got[2]);
	pass();
}
