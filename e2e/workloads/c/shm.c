/* System V shared memory: by key and private, attached twice, by a child, read-only, a part of it, removed while attached; what a segment
 * is called and who may use it. */
#include "workload.h"
#include <sys/ipc.h>
#include <sys/shm.h>

#define SIZE 100000 /* no multiple of a page */

static int keep, removed;

static void clean_up(void) { shmctl(keep, IPC_RMID, NULL); }

int main(void)
{
	key_t key = 0x4d000000 | getpid();
	keep = shmget(key, SIZE, IPC_CREAT | IPC_EXCL | 0640);
	removed = shmget(IPC_PRIVATE, 8 * 4096, IPC_CREAT | 0600);
	CHECK(keep >= 0 && removed >= 0, "shmget");
	atexit(clean_up);
	struct shmid_ds d, before;
	CHECK(!shmctl(keep, IPC_STAT, &d), "IPC_STAT");
	d.shm_perm.uid = 7;
	d.shm_perm.gid = 8;
	d.shm_perm.mode = 0604;
	CHECK(!shmctl(keep, IPC_SET, &d), "IPC_SET");
	char *a = shmat(keep, NULL, 0), *b = shmat(keep, NULL, SHM_RDONLY), *r = shmat(removed, NULL, 0);
	CHECK(a != (void *)-1 && b != (void *)-1 && r != (void *)-1, "shmat");
	strcpy(a + 50000, "kept");
	strcpy(a + SIZE - 5, "last");
	strcpy(r + 3 * 4096, "three");
	CHECK(!munmap(r, 2 * 4096) && !munmap(r + 6 * 4096, 2 * 4096), "a part");
	CHECK(!shmctl(removed, IPC_RMID, NULL), "IPC_RMID");
	pid_t child = fork();
	if (!child) {
		while (a[0] != 'g')
			usleep(500);
		_exit(strcmp(b + 50000, "kept") ? 9 : shmdt(a) ? 8 : 0);
	}
	CHECK(!shmctl(keep, IPC_STAT, &before), "IPC_STAT");
	ready();
	CHECK(!shmctl(keep, IPC_STAT, &d), "IPC_STAT");
	CHECK(d.shm_perm.__key == key && shmget(key, 0, 0) == keep && d.shm_segsz == SIZE, "key and size");
	CHECK(d.shm_perm.uid == 7 && d.shm_perm.gid == 8 && (d.shm_perm.mode & 0777) == 0604, "permissions");
	CHECK(d.shm_nattch == before.shm_nattch, "%lu attachments, %lu before", (unsigned long)d.shm_nattch, (unsigned long)before.shm_nattch);
	CHECK(!strcmp(a + 50000, "kept") && !strcmp(b + SIZE - 5, "last"), "content");
	strcpy(a + 10, "one");
	CHECK(!strcmp(b + 10, "one"), "the two attachments are of two segments");
	CHECK(mprotect(b, 4096, PROT_READ | PROT_WRITE) < 0, "a read-only attachment may be written");
	CHECK(!strcmp(r + 3 * 4096, "three"), "a part of a removed segment");
	CHECK(!shmctl(removed, IPC_STAT, &d) && (d.shm_perm.mode & SHM_DEST) && d.shm_nattch == 2, "the removed segment: mode %o", d.shm_perm.mode);
	a[0] = 'g';
	int st;
	CHECK(waitpid(child, &st, 0) == child && !st, "child %x", st);
	CHECK(!shmdt(a) && !shmdt(b), "shmdt");
	CHECK(!shmctl(keep, IPC_STAT, &d) && !d.shm_nattch, "%lu attachments left", (unsigned long)d.shm_nattch);
	CHECK(!munmap(r + 2 * 4096, 4 * 4096) && shmctl(removed, IPC_STAT, &d) < 0, "the removed segment outlives its last user");
	clean_up();
	pass();
}
