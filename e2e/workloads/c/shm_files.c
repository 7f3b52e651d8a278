/* POSIX shared memory and named semaphores (shm_overview(7), sem_overview(7)): open, mapped by two processes, deleted, and such that
 * nobody has open; directories, links, owners, modes and times of what is there. */
#include "workload.h"
#include <semaphore.h>

static char dir[64];

static char *at(const char *name)
{
	static char path[8][128];
	static int i;
	snprintf(path[i = (i + 1) % 8], sizeof *path, "/dev/shm%s/%s", dir, name);
	return path[i];
}

static int shm(const char *name, int flags, size_t size)
{
	char path[128];
	snprintf(path, sizeof path, "%s-%s", dir, name);
	int fd = shm_open(path, flags, 0640);
	CHECK(fd >= 0, "shm_open %s", path);
	CHECK(!size || !ftruncate(fd, size), "ftruncate %s", path);
	return fd;
}

static char *map(int fd, size_t size)
{
	char *m = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(m != MAP_FAILED, "mmap");
	return m;
}

static void spot(const char *path, const char *text, mode_t mode, uid_t uid, time_t mtime)
{
	char have[64] = "";
	struct stat st;
	CHECK(!lstat(path, &st), "%s", path);
	CHECK(st.st_mode == mode && st.st_uid == uid && st.st_mtime == mtime, "%s: %o, %d, %ld", path, st.st_mode, st.st_uid, (long)st.st_mtime);
	if (!S_ISREG(mode))
		return;
	int fd = open(path, O_RDONLY);
	CHECK(fd >= 0 && read(fd, have, sizeof have - 1) >= 0 && !strcmp(have, text), "%s: %s", path, have);
	close(fd);
}

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
	CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && !close(fd), "%s", path);
}

int main(void)
{
	const size_t size = 20000;
	snprintf(dir, sizeof dir, "/migrate-%d", getpid());
	int open_fd = shm("open", O_RDWR | O_CREAT | O_EXCL, size);
	char *m = map(open_fd, size), *gone, *ro;
	strcpy(m + 9000, "open and mapped");
	int fd = shm("closed", O_RDWR | O_CREAT | O_EXCL, 3 * 4096);
	CHECK(pwrite(fd, "closed", 6, 8190) == 6 && !close(fd), "pwrite");
	fd = shm("gone", O_RDWR | O_CREAT | O_EXCL, size);
	gone = map(fd, size);
	strcpy(gone + 5000, "deleted and mapped");
	close(fd);
	char name[128];
	snprintf(name, sizeof name, "%s-gone", dir);
	CHECK(!shm_unlink(name), "shm_unlink");
	fd = shm("private", O_RDWR | O_CREAT | O_EXCL, 2 * 4096);
	CHECK(pwrite(fd, "below", 6, 0) == 6 && pwrite(fd, "second", 7, 4096) == 7, "pwrite");
	ro = mmap(NULL, 2 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	CHECK(ro != MAP_FAILED && !close(fd), "mmap");
	strcpy(ro + 4096, "own");

	CHECK(!mkdir(at(""), 0700) && !mkdir(at("inner"), 0), "mkdir");
	write_file(at("inner/a"), "one file");
	CHECK(!link(at("inner/a"), at("b")) && !lchown(at("b"), 77, 78) && !chmod(at("b"), 04751), "link");
	CHECK(!symlink("inner/a", at("link")) && !lchown(at("link"), 79, 80), "symlink");
	struct timespec old[2] = {{.tv_sec = 1000000000}, {.tv_sec = 1100000000}};
	CHECK(!utimensat(AT_FDCWD, at("b"), old, 0) && !utimensat(AT_FDCWD, at("link"), old, AT_SYMLINK_NOFOLLOW), "utimensat");
	CHECK(!chmod(at("inner"), 0511) && !utimensat(AT_FDCWD, at("inner"), old, 0), "utimensat");

	snprintf(name, sizeof name, "%s-sem", dir);
	sem_t *sem = sem_open(name, O_CREAT | O_EXCL, 0600, 0), *other;
	CHECK(sem != SEM_FAILED, "sem_open");
	pid_t pid = fork();
	if (!pid) {
		strcpy(m, "from the child");
		while (sem_wait(sem))
			;
		_exit(strcmp(m + 100, "from the parent") || strcmp(gone, "still shared") ? 1 : 42);
	}
	while (!m[0])
		usleep(1000);
	ready();

	CHECK(!strcmp(m, "from the child") && !strcmp(m + 9000, "open and mapped"), "the mapped file");
	char text[32] = "";
	CHECK(pread(open_fd, text, 15, 9000) == 15 && !strcmp(text, "open and mapped"), "the open file: %s", text);
	struct stat st, st2;
	fd = shm("open", O_RDWR, 0);
	CHECK(!fstat(fd, &st) && !fstat(open_fd, &st2) && st.st_ino == st2.st_ino && st.st_size == (off_t)size && (st.st_mode & 0777) == 0640, "it is not the same file");
	close(fd);
	fd = shm("closed", O_RDWR, 0);
	memset(text, 0, sizeof text);
	CHECK(pread(fd, text, 6, 8190) == 6 && !strcmp(text, "closed") && !fstat(fd, &st) && st.st_size == 3 * 4096, "the closed file: %s", text);
	close(fd);
	CHECK(!strcmp(gone + 5000, "deleted and mapped"), "the deleted file");
	CHECK(!strcmp(ro, "below") && !strcmp(ro + 4096, "own"), "the private mapping: %s, %s", ro, ro + 4096);
	spot(at("b"), "one file", S_IFREG | 04751, 77, 1100000000);
	spot(at("inner/a"), "one file", S_IFREG | 04751, 77, 1100000000);
	spot(at("inner"), "", S_IFDIR | 0511, 0, 1100000000);
	spot(at("link"), "", S_IFLNK | 0777, 79, 1100000000);
	CHECK(!stat(at("link"), &st) && !stat(at("b"), &st2) && st.st_ino == st2.st_ino && st.st_nlink == 2, "the names of a file");

	int status;
	CHECK(waitpid(pid, &status, WNOHANG) == 0, "the child did not wait: 0x%x", status);
	strcpy(m + 100, "from the parent"), strcpy(gone, "still shared");
	other = sem_open(name, 0);
	CHECK(other != SEM_FAILED && !sem_post(other), "sem_open");
	CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 42, "the child: 0x%x", status);
	CHECK(!sem_unlink(name), "sem_unlink");
	for (const char **n = (const char *[]){"open", "closed", "private", NULL}; *n; n++) {
		snprintf(name, sizeof name, "%s-%s", dir, *n);
		CHECK(!shm_unlink(name), "shm_unlink");
	}
	CHECK(!unlink(at("inner/a")) && !unlink(at("b")) && !unlink(at("link")) && !rmdir(at("inner")) && !rmdir(at("")), "unlink");
	pass();
}
