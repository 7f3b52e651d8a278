/* System V semaphores, message queues and shared memory that nobody has attached (sysvipc(7)): ids, keys, owners, creators, modes,
 * values and contents, with processes that wait for them. */
#include "workload.h"
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

union arg {
	int val;
	struct semid_ds *ds;
	unsigned short *array;
};

struct message {
	long type;
	char text[600];
};

static void put(int queue, long type, const char *text, size_t size)
{
	struct message m = {.type = type};
	strcpy(m.text, text);
	CHECK(!msgsnd(queue, &m, size, IPC_NOWAIT), "msgsnd %s", text);
}

static void get(int queue, long type, long is, const char *text, size_t size)
{
	struct message m = {0};
	ssize_t n = msgrcv(queue, &m, sizeof m.text, type, IPC_NOWAIT);
	CHECK(n == (ssize_t)size && m.type == is && !strcmp(m.text, text), "message %ld: %zd bytes of type %ld, %s", type, n, m.type, m.text);
}

int main(void)
{
	key_t key = 0x4d000000 + getpid();
	/* An id holds a number that grows when an object is removed. */
	int gone = semget(IPC_PRIVATE, 1, 0600);
	CHECK(gone >= 0 && !semctl(gone, 0, IPC_RMID), "semget");
	int set = semget(key, 3, 0640 | IPC_CREAT | IPC_EXCL);
	CHECK(set >= 0, "semget");
	unsigned short values[3] = {7, 0, 65}, now[3];
	CHECK(!semctl(set, 0, SETALL, (union arg){.array = values}), "SETALL");
	/* Made by one user, given to another. */
	CHECK(!setegid(1234) && !seteuid(1234), "seteuid");
	int others = semget(IPC_PRIVATE, 1, 0600), queue = msgget(key, 0622 | IPC_CREAT | IPC_EXCL);
	CHECK(others >= 0 && queue >= 0, "semget, msgget");
	CHECK(!seteuid(0) && !setegid(0), "seteuid");
	struct semid_ds sd;
	CHECK(!semctl(others, 0, IPC_STAT, (union arg){.ds = &sd}), "IPC_STAT");
	sd.sem_perm.uid = 4321, sd.sem_perm.gid = 4322, sd.sem_perm.mode = 0604;
	CHECK(!semctl(others, 0, IPC_SET, (union arg){.ds = &sd}), "IPC_SET");
	struct msqid_ds qd;
	CHECK(!msgctl(queue, IPC_STAT, &qd), "IPC_STAT");
	qd.msg_qbytes = 5000;
	CHECK(!msgctl(queue, IPC_SET, &qd), "IPC_SET");
	put(queue, 3, "first", 6);
	put(queue, 1, "second", 600);
	put(queue, 3, "third", 6);
	put(queue, 9, "", 0);
	int waited = msgget(IPC_PRIVATE, 0600);
	int seg = shmget(key, 10000, 0604 | IPC_CREAT | IPC_EXCL);
	CHECK(waited >= 0 && seg >= 0, "msgget, shmget");
	char *m = shmat(seg, NULL, 0);
	CHECK(m != (void *)-1, "shmat");
	strcpy(m + 5000, "nobody is attached");
	CHECK(!shmdt(m), "shmdt");

	pid_t a = fork();
	if (!a) { /* until somebody gives the second semaphore back */
		struct sembuf op = {.sem_num = 1, .sem_op = -1};
		_exit(semop(set, &op, 1) ? errno : 42);
	}
	pid_t b = fork();
	if (!b) {
		struct message r = {0};
		ssize_t n = msgrcv(waited, &r, sizeof r.text, -5, 0);
		_exit(n == 5 && r.type == 4 && !strcmp(r.text, "call") ? 43 : errno);
	}
	while (semctl(set, 1, GETNCNT) != 1)
		usleep(1000);
	ready();

	CHECK(semget(key, 0, 0) == set && msgget(key, 0) == queue && shmget(key, 0, 0) == seg, "keys");
	CHECK(!semctl(set, 0, GETALL, (union arg){.array = now}) && !memcmp(now, values, sizeof now), "values %d %d %d", now[0], now[1], now[2]);
	CHECK(!semctl(set, 0, IPC_STAT, (union arg){.ds = &sd}) && (sd.sem_perm.mode & 0777) == 0640 && sd.sem_nsems == 3, "the set");
	CHECK(!semctl(others, 0, IPC_STAT, (union arg){.ds = &sd}), "IPC_STAT");
	CHECK(sd.sem_perm.uid == 4321 && sd.sem_perm.gid == 4322 && sd.sem_perm.cuid == 1234 && sd.sem_perm.cgid == 1234 && (sd.sem_perm.mode & 0777) == 0604,
	      "the other set: %d %d %d %d %o", sd.sem_perm.uid, sd.sem_perm.gid, sd.sem_perm.cuid, sd.sem_perm.cgid, sd.sem_perm.mode);
	CHECK(!msgctl(queue, IPC_STAT, &qd), "IPC_STAT");
	CHECK(qd.msg_qbytes == 5000 && qd.msg_qnum == 4 && qd.msg_perm.cuid == 1234 && (qd.msg_perm.mode & 0777) == 0622,
	      "the queue: %lu bytes, %lu messages, %d, %o", qd.msg_qbytes, qd.msg_qnum, qd.msg_perm.cuid, qd.msg_perm.mode);
	get(queue, 1, 1, "second", 600);
	get(queue, 0, 3, "first", 6);
	get(queue, 0, 3, "third", 6);
	get(queue, 0, 9, "", 0);
	m = shmat(seg, NULL, 0);
	CHECK(m != (void *)-1 && !strcmp(m + 5000, "nobody is attached"), "the segment");
	struct shmid_ds md;
	CHECK(!shmctl(seg, IPC_STAT, &md) && md.shm_segsz == 10000 && md.shm_nattch == 1 && (md.shm_perm.mode & 0777) == 0604, "the segment: %zu", md.shm_segsz);

	int st;
	struct sembuf up = {.sem_num = 1, .sem_op = 1};
	CHECK(waitpid(a, &st, WNOHANG) == 0 && waitpid(b, &st, WNOHANG) == 0, "a child did not wait: 0x%x", st);
	CHECK(!semop(set, &up, 1) && waitpid(a, &st, 0) == a && WIFEXITED(st) && WEXITSTATUS(st) == 42, "who waits for a semaphore: 0x%x", st);
	put(waited, 4, "call", 5);
	CHECK(waitpid(b, &st, 0) == b && WIFEXITED(st) && WEXITSTATUS(st) == 43, "who waits for a message: 0x%x", st);
	semctl(set, 0, IPC_RMID), semctl(others, 0, IPC_RMID);
	msgctl(queue, IPC_RMID, NULL), msgctl(waited, IPC_RMID, NULL), shmctl(seg, IPC_RMID, NULL);
	pass();
}
