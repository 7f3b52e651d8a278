/* A deleted file on a file system that is read-only by now. */
#include "workload.h"
#include <sched.h>
#include <sys/mount.h>

int main(void)
{
	CHECK(!mkdir("mnt", 0755) && !mount("none", "mnt", "tmpfs", 0, "size=1m"), "mount");
	int w = open("mnt/file", O_RDWR | O_CREAT, 0640), f = open("mnt/file", O_RDONLY);
	CHECK(w >= 0 && f >= 0 && write(w, "content", 7) == 7 && !close(w) && !unlink("mnt/file"), "file");
	CHECK(!mount("none", "mnt", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL), "read-only");
	ready();
	char b[16] = "";
	struct stat st;
	CHECK(read(f, b, 15) == 7 && !strcmp(b, "content"), "content");
	CHECK(!fstat(f, &st) && st.st_mode == (S_IFREG | 0640) && !st.st_nlink, "stat");
	close(f);
	CHECK(!umount2("mnt", MNT_DETACH), "umount");
	pass();
}
