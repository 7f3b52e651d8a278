/* SEM_UNDO of System V semaphores (semop(2)): what processes have changed with it is undone at their end, and not before.
 * One holds two semaphores of a set, its child has given one back to another set. */
#include "workload.h"
#include <pthread.h>
#include <sys/ipc.h>
#include <sys/sem.h>

static int set, other;

static void change(int id, int n, int by, int flags)
{
	struct sembuf op = {.sem_num = n, .sem_op = by, .sem_flg = flags | IPC_NOWAIT};
	CHECK(!semop(id, &op, 1), "semaphore %d by %d", n, by);
}

static int value(int id, int n)
{
	return semctl(id, n, GETVAL);
}

static void *thread(void *arg)
{
	change(set, 3, -2, SEM_UNDO); /* the threads of a process undo together */
	for (;;)
		pause();
	return arg;
}

static volatile int go;
static void on_usr1(int sig) { go = sig; }

int main(void)
{
	set = semget(IPC_PRIVATE, 5, 0600 | IPC_CREAT);
	other = semget(IPC_PRIVATE, 2, 0600 | IPC_CREAT);
	CHECK(set >= 0 && other >= 0, "semget");
	union { int val; unsigned short *array; } init = {.array = (unsigned short[]){5, 5, 5, 5, 5}};
	CHECK(!semctl(set, 0, SETALL, init) && !semctl(other, 0, SETALL, init), "SETALL");
	signal(SIGUSR1, on_usr1);
	int up[2];
	CHECK(!pipe(up), "pipe");
	pid_t pid = fork();
	if (!pid) {
		change(set, 1, -3, SEM_UNDO);
		change(set, 0, -1, 0);
		change(other, 1, 4, SEM_UNDO);
		pthread_t t;
		pthread_create(&t, NULL, thread, NULL);
		while (value(set, 3) != 3)
			usleep(1000);
		if (write(up[1], "", 1) != 1)
			_exit(1);
		sigset_t usr1;
		sigemptyset(&usr1), sigaddset(&usr1, SIGUSR1);
		for (int sig; !go && sigwait(&usr1, &sig);)
			;
		_exit(0);
	}
	char c;
	CHECK(read(up[0], &c, 1) == 1, "read");
	change(set, 2, -5, SEM_UNDO);
	change(set, 4, -5, SEM_UNDO);
	change(set, 4, 5, SEM_UNDO); /* nothing is left of it */
	ready();
	CHECK(value(set, 0) == 4 && value(set, 1) == 2 && value(set, 2) == 0 && value(set, 3) == 3 && value(set, 4) == 5,
	      "values %d %d %d %d %d", value(set, 0), value(set, 1), value(set, 2), value(set, 3), value(set, 4));
	CHECK(value(other, 0) == 5 && value(other, 1) == 9, "values %d %d", value(other, 0), value(other, 1));
	int st;
	CHECK(!kill(pid, SIGKILL) && waitpid(pid, &st, 0) == pid, "the child");
	CHECK(value(set, 0) == 4 && value(set, 1) == 5 && value(set, 2) == 0 && value(set, 3) == 5 && value(set, 4) == 5,
	      "values after the end of the child %d %d %d %d %d", value(set, 0), value(set, 1), value(set, 2), value(set, 3), value(set, 4));
	CHECK(value(other, 1) == 5, "value after the end of the child %d", value(other, 1));
	semctl(set, 0, IPC_RMID), semctl(other, 0, IPC_RMID);
	pass();
}
