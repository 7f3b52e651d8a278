/* Deleted files that are open: content, holes, offsets, flags, owner, mode and times, several descriptions, a file made anew under the
 * old name, one in a deleted directory, O_TMPFILE, and one on a file system in memory. */
#include "workload.h"

#define BIG ((off_t)3 << 30)

int main(void)
{
	int a = open("gone", O_RDWR | O_CREAT | O_TRUNC, 0640);
	CHECK(a >= 0 && write(a, "0123456789", 10) == 10 && lseek(a, 4, SEEK_SET) == 4, "gone");
	int ro = open("gone", O_RDONLY), app = open("gone", O_WRONLY | O_APPEND), path = open("gone", O_PATH);
	CHECK(ro >= 0 && app >= 0 && path >= 0, "open again");
	CHECK(!fchown(a, 12, 34) && !fchmod(a, 02604), "owner");
	struct timespec times[2] = {{1000000000, 5}, {1100000000, 7}};
	CHECK(!futimens(a, times), "times");
	CHECK(!unlink("gone"), "unlink");
	int again = open("gone", O_RDWR | O_CREAT | O_EXCL, 0600);
	CHECK(again >= 0 && write(again, "new", 3) == 3, "a new file of the name");
	/* Holes: data at 64 KiB, zeros that are no hole at 1 MiB, data at the end of 3 GiB. */
	int big = open("sparse", O_RDWR | O_CREAT | O_TRUNC, 0600);
	char buf[8192] = "", name[64], link[256];
	CHECK(pwrite(big, buf, 8192, 1 << 20) == 8192 && pwrite(big, "data", 4, 65536) == 4 && pwrite(big, "end", 3, BIG - 3) == 3, "sparse");
	CHECK(!unlink("sparse"), "unlink");
	CHECK(!mkdir("dir", 0755) && !mkdir("dir/deep", 0755), "mkdir");
	int deep = open("dir/deep/file", O_RDWR | O_CREAT, 0600);
	CHECK(deep >= 0 && write(deep, "deep", 4) == 4 && !unlink("dir/deep/file") && !rmdir("dir/deep") && !rmdir("dir"), "deep");
	int tmp = open(".", O_TMPFILE | O_RDWR, 0600);
	CHECK(tmp >= 0 && write(tmp, "tmp", 3) == 3, "O_TMPFILE");
	snprintf(name, sizeof name, "/dev/shm/workload.%d", getpid());
	int shm = open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
	CHECK(shm >= 0 && write(shm, "shm", 3) == 3 && !unlink(name), "shm");
	ready();
	struct stat st;
	CHECK(lseek(a, 0, SEEK_CUR) == 4 && read(a, buf, 100) == 6 && !memcmp(buf, "456789", 6), "content");
	CHECK(!fstat(a, &st) && st.st_size == 10 && !st.st_nlink && st.st_uid == 12 && st.st_gid == 34 && st.st_mode == (S_IFREG | 02604),
	      "stat: size %ld, links %ld, mode %o", (long)st.st_size, (long)st.st_nlink, st.st_mode);
	CHECK(st.st_mtim.tv_sec == 1100000000 && st.st_mtim.tv_nsec == 7, "mtime");
	CHECK(write(app, "++", 2) == 2 && pread(ro, buf, 100, 0) == 12 && !memcmp(buf, "0123456789++", 12), "the descriptions are not of one file");
	CHECK(write(ro, "x", 1) < 0 && errno == EBADF && (fcntl(app, F_GETFL) & O_APPEND) && (fcntl(path, F_GETFL) & O_PATH), "flags");
	ino_t one = st.st_ino;
	CHECK(!fstat(path, &st) && st.st_ino == one, "the O_PATH descriptor is of another file");
	CHECK(!stat("gone", &st) && st.st_size == 3 && !fstat(again, &st) && st.st_nlink == 1, "the new file");
	CHECK(!fstat(big, &st) && st.st_size == BIG && st.st_blocks < 1000, "sparse: %ld bytes, %ld blocks", (long)st.st_size, (long)st.st_blocks);
	CHECK(lseek(big, 0, SEEK_DATA) == 65536 && lseek(big, 65536, SEEK_HOLE) == 65536 + 4096, "first hole");
	CHECK(lseek(big, 65536 + 4096, SEEK_DATA) == 1 << 20 && lseek(big, 1 << 20, SEEK_HOLE) == (1 << 20) + 8192, "zeros are not a hole");
	CHECK(pread(big, buf, 10, BIG - 3) == 3 && !memcmp(buf, "end", 3) && pread(big, buf, 4, 65536) == 4 && !memcmp(buf, "data", 4), "sparse content");
	CHECK(pread(deep, buf, 10, 0) == 4 && access("dir", F_OK) < 0, "the deleted directory is there again");
	CHECK(pread(tmp, buf, 10, 0) == 3 && !memcmp(buf, "tmp", 3), "O_TMPFILE");
	snprintf(name, sizeof name, "/proc/self/fd/%d", tmp);
	CHECK(!linkat(AT_FDCWD, name, AT_FDCWD, "named", AT_SYMLINK_FOLLOW), "giving a name to an O_TMPFILE");
	snprintf(name, sizeof name, "/proc/self/fd/%d", shm);
	ssize_t n = readlink(name, link, sizeof link - 1);
	CHECK(n > 0, "readlink");
	link[n] = 0;
	CHECK(!strncmp(link, "/dev/shm/workload.", 18) && strstr(link, " (deleted)"), "the name is %s", link);
	CHECK(pread(shm, buf, 10, 0) == 3 && !memcmp(buf, "shm", 3), "shm");
	pass();
}
