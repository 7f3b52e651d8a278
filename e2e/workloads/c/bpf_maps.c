/* BPF maps: a hash and an array, with contents, names and flags, frozen and not, held twice. */
#include "workload.h"
#include <linux/bpf.h>

static long bpf(int cmd, union bpf_attr *a) { return syscall(SYS_bpf, cmd, a, sizeof *a); }
static int map(unsigned type, unsigned key, unsigned value, unsigned n, const char *name, unsigned flags)
{
	union bpf_attr a = {.map_type = type, .key_size = key, .value_size = value, .max_entries = n, .map_flags = flags};
	strcpy(a.map_name, name);
	int fd = bpf(BPF_MAP_CREATE, &a);
	CHECK(fd >= 0, "map %s", name);
	return fd;
}
static int put(int fd, unsigned k, uint64_t v)
{
	union bpf_attr a = {.map_fd = fd, .key = (uintptr_t)&k, .value = (uintptr_t)&v};
	return bpf(BPF_MAP_UPDATE_ELEM, &a);
}
static uint64_t get(int fd, unsigned k)
{
	uint64_t v = 0;
	union bpf_attr a = {.map_fd = fd, .key = (uintptr_t)&k, .value = (uintptr_t)&v};
	return bpf(BPF_MAP_LOOKUP_ELEM, &a) ? 0 : v;
}
static struct bpf_map_info info(int fd)
{
	struct bpf_map_info i = {0};
	union bpf_attr a = {.info = {.bpf_fd = fd, .info_len = sizeof i, .info = (uintptr_t)&i}};
	CHECK(!bpf(BPF_OBJ_GET_INFO_BY_FD, &a), "info");
	return i;
}

int main(void)
{
	int hash = map(BPF_MAP_TYPE_HASH, 4, 8, 600, "a_hash", BPF_F_NO_PREALLOC), array = map(BPF_MAP_TYPE_ARRAY, 4, 8, 300, "an_array", 0);
	int ro = map(BPF_MAP_TYPE_ARRAY, 4, 8, 4, "frozen", BPF_F_RDONLY_PROG), empty = map(BPF_MAP_TYPE_HASH, 4, 8, 7, "", 0), again;
	for (unsigned i = 0; i < 500; i++)
		CHECK(!put(hash, i * 7, i + 1), "hash %d", i);
	for (unsigned i = 0; i < 300; i++)
		CHECK(!put(array, i, 10000 + i), "array %d", i);
	CHECK(!put(ro, 2, 42), "frozen");
	union bpf_attr a = {.map_fd = ro};
	CHECK(!bpf(BPF_MAP_FREEZE, &a), "freeze");
	again = dup(hash);
	struct bpf_map_info was = info(hash), was2 = info(empty);
	ready();
	struct bpf_map_info is = info(hash), is2 = info(empty);
	CHECK(is.type == was.type && is.key_size == 4 && is.value_size == 8 && is.max_entries == 600 && is.map_flags == was.map_flags && !strcmp(is.name, "a_hash"), "hash");
	CHECK(is2.max_entries == was2.max_entries && !*is2.name, "the empty one");
	for (unsigned i = 0; i < 500; i++)
		CHECK(get(again, i * 7) == i + 1 && !get(hash, i * 7 + 1), "hash %d is %llu", i, (unsigned long long)get(hash, i * 7));
	for (unsigned i = 0; i < 300; i++)
		CHECK(get(array, i) == 10000 + i, "array %d", i);
	CHECK(get(ro, 2) == 42 && put(ro, 2, 1) && errno == EPERM, "frozen");
	CHECK(!put(hash, 1, 1) && get(again, 1) == 1 && !put(array, 1, 5), "writing");
	pass();
}
