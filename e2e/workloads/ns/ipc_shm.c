/* System V shared memory of an IPC namespace: a segment that nobody has attached, and one that is attached. */
#include "../c/workload.h"
#include <sys/ipc.h>
#include <sys/shm.h>

int main(void)
{
	int gone = shmget(IPC_PRIVATE, 4096, 0600), alone = shmget(0x777, 3 * 4096, IPC_CREAT | 0640), used = shmget(IPC_PRIVATE, 100, 0600);
	CHECK(gone >= 0 && alone >= 0 && used >= 0 && !shmctl(gone, IPC_RMID, NULL), "shmget");
	char *a = shmat(alone, NULL, 0), *u = shmat(used, NULL, 0);
	CHECK(a != (void *)-1 && u != (void *)-1, "shmat");
	strcpy(a + 2 * 4096, "alone");
	strcpy(u, "used");
	CHECK(!shmdt(a), "shmdt");
	ready();
	CHECK(shmget(0x777, 0, 0) == alone, "the key 0x777 is that of another segment");
	struct shmid_ds d;
	CHECK(!shmctl(alone, IPC_STAT, &d) && !d.shm_nattch && d.shm_segsz == 3 * 4096 && (d.shm_perm.mode & 07777) == 0640, "alone: mode %o", d.shm_perm.mode);
	CHECK((a = shmat(alone, NULL, SHM_RDONLY)) != (void *)-1 && !strcmp(a + 2 * 4096, "alone"), "content");
	CHECK(!strcmp(u, "used") && !shmctl(used, IPC_STAT, &d) && d.shm_nattch == 1, "the attached one");
	pass();
}
