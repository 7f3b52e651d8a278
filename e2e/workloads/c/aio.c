/* Contexts of io_setup(2): an idle one, one whose ring has turned, and one with events that were not fetched. */
#include "workload.h"
#include <linux/aio_abi.h>

static int setup(unsigned n, aio_context_t *c) { return syscall(SYS_io_setup, n, c); }
static int submit(aio_context_t c, struct iocb *i)
{
	struct iocb *list[1] = {i};
	return syscall(SYS_io_submit, c, 1, list);
}
static int events(aio_context_t c, int min, int max, struct io_event *e)
{
	struct timespec t = {2, 0};
	return syscall(SYS_io_getevents, c, min, max, e, &t);
}

int main(void)
{
	aio_context_t idle = 0, busy = 0, small = 0;
	int f = open("data", O_RDWR | O_CREAT, 0644);
	CHECK(f >= 0 && write(f, "0123456789abcdef", 16) == 16, "data");
	CHECK(!setup(10, &idle) && !setup(64, &busy) && !setup(1, &small), "io_setup");
	char b[16];
	struct iocb io = {.aio_fildes = f, .aio_lio_opcode = IOCB_CMD_PREAD, .aio_buf = (uintptr_t)b, .aio_nbytes = 8, .aio_offset = 4};
	struct io_event e[8];
	for (int i = 0; i < 500; i++) {
		io.aio_data = i;
		CHECK(submit(busy, &io) == 1 && events(busy, 1, 1, e) == 1 && e[0].data == (unsigned)i, "turn %d", i);
	}
	aio_context_t was = busy;
	for (int i = 0; i < 3; i++) {
		io.aio_data = 1000 + i;
		CHECK(submit(busy, &io) == 1, "submit");
	}
	ready();
	CHECK(was == busy && events(busy, 3, 8, e) == 3, "events that waited");
	for (int i = 0; i < 3; i++)
		CHECK(e[i].data == 1000u + i && e[i].res == 8, "event %d: data %llu res %lld", i, (unsigned long long)e[i].data, (long long)e[i].res);
	for (int i = 0; i < 500; i++) {
		memset(b, 0, sizeof b);
		io.aio_data = i;
		CHECK(submit(busy, &io) == 1 && events(busy, 1, 1, e) == 1 && e[0].data == (unsigned)i && !memcmp(b, "456789ab", 8), "turn %d after", i);
		CHECK(submit(idle, &io) == 1 && events(idle, 1, 1, e) == 1 && submit(small, &io) == 1 && events(small, 1, 1, e) == 1, "the others");
	}
	CHECK(events(idle, 0, 1, e) == 0, "nothing more");
	CHECK(!syscall(SYS_io_destroy, idle) && !syscall(SYS_io_destroy, busy) && !syscall(SYS_io_destroy, small), "io_destroy");
	CHECK(syscall(SYS_io_destroy, busy) && errno == EINVAL, "io_destroy twice");
	pass();
}
