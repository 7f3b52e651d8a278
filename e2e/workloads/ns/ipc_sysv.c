/* System V semaphores and message queues with their ids, values, contents and owners; IPC sysctls. */
#include "../c/workload.h"
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>

struct message {
	long type;
	char text[100];
};

int main(void)
{
	int fd = open("/proc/sys/kernel/msgmax", O_WRONLY);
	CHECK(fd >= 0 && write(fd, "7000", 4) == 4, "sysctl");
	close(fd);
	int gone = semget(IPC_PRIVATE, 1, 0600);
	int sem = semget(0x1234, 3, IPC_CREAT | 0640);
	int queue = msgget(0x4321, IPC_CREAT | 0620), empty = msgget(IPC_PRIVATE, 0600);
	CHECK(gone >= 0 && sem >= 0 && queue >= 0 && empty >= 0, "making objects");
	CHECK(!semctl(gone, 0, IPC_RMID), "removing");
	unsigned short values[3] = {5, 0, 77};
	CHECK(!semctl(sem, 0, SETALL, values), "values");
	struct message m = {2, "second kind"};
	CHECK(!msgsnd(queue, &m, 12, 0), "send");
	m = (struct message){1, "first kind"};
	CHECK(!msgsnd(queue, &m, 11, 0) && !msgsnd(queue, &m, 0, 0), "send");
	struct msqid_ds ds;
	CHECK(!msgctl(queue, IPC_STAT, &ds), "stat");
	ds.msg_qbytes = 5000;
	ds.msg_perm.uid = 7;
	CHECK(!msgctl(queue, IPC_SET, &ds), "set");
	ready();
	CHECK(semget(0x1234, 3, 0) == sem && msgget(0x4321, 0) == queue, "ids");
	unsigned short got[3];
	CHECK(!semctl(sem, 0, GETALL, got) && !memcmp(got, values, sizeof got), "values are %d, %d, %d", got[0], got[1], got[2]);
	CHECK(!msgctl(queue, IPC_STAT, &ds) && ds.msg_qbytes == 5000 && ds.msg_perm.uid == 7 && ds.msg_perm.cuid == 0 && (ds.msg_perm.mode & 0777) == 0620,
	      "queue: %lu bytes, owner %d, creator %d, mode %o", (unsigned long)ds.msg_qbytes, ds.msg_perm.uid, ds.msg_perm.cuid, ds.msg_perm.mode);
	CHECK(msgrcv(queue, &m, sizeof m.text, 0, IPC_NOWAIT) == 12 && m.type == 2 && !strcmp(m.text, "second kind"), "first message");
	CHECK(msgrcv(queue, &m, sizeof m.text, 1, IPC_NOWAIT) == 11 && !strcmp(m.text, "first kind"), "second message");
	CHECK(msgrcv(queue, &m, sizeof m.text, 0, IPC_NOWAIT) == 0 && m.type == 1, "third message");
	CHECK(msgrcv(empty, &m, sizeof m.text, 0, IPC_NOWAIT) < 0 && errno == ENOMSG, "empty queue");
	char text[16] = "";
	fd = open("/proc/sys/kernel/msgmax", O_RDONLY);
	CHECK(fd >= 0 && read(fd, text, 15) > 0 && !strcmp(text, "7000\n"), "msgmax is %s", text);
	pass();
}
