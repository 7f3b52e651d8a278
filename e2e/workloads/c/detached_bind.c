/* An open file on a bind mount that is gone, while the mount that it was bound from is still there. */
#include "workload.h"
#include <sys/mount.h>

int main(void)
{
	CHECK(!mkdir("kept", 0755) && !mkdir("bound", 0755) && !mount("none", "kept", "tmpfs", 0, NULL), "mount");
	int kept = open("kept/file", O_CREAT | O_RDWR, 0640), file = open("f", O_CREAT | O_RDWR, 0640);
	CHECK(kept >= 0 && write(kept, "kept", 4) == 4 && !close(file), "files");
	CHECK(!mount("kept", "bound", NULL, MS_BIND, NULL) && !mount("kept/file", "f", NULL, MS_BIND, NULL), "bind");
	int bound = open("bound/file", O_RDWR | O_APPEND), alone = open("f", O_RDONLY);
	CHECK(bound >= 0 && alone >= 0 && lseek(bound, 4, SEEK_SET) == 4, "open");
	CHECK(!umount2("bound", MNT_DETACH) && !umount2("f", MNT_DETACH), "umount2");
	ready();
	char b[8] = {0};
	CHECK(lseek(bound, 0, SEEK_CUR) == 4 && write(bound, "!", 1) == 1, "write");
	CHECK(pread(kept, b, 8, 0) == 5 && !strcmp(b, "kept!"), "another file: %s", b);
	CHECK(pread(alone, b, 8, 0) == 5 && !strcmp(b, "kept!"), "another file by its own mount: %s", b);
	close(kept);
	close(bound);
	close(alone);
	CHECK(!umount("kept"), "umount");
	pass();
}
