/* What the kernel says of a mapping of this process: its line of /proc/self/smaps. */
#ifndef MEMORY_H
#define MEMORY_H
#include "workload.h"

#define PAGE 4096UL

struct area {
	unsigned long start, end;
	char perms[8], name[256], flags[256]; /* flags: VmFlags with a space at both ends */
	unsigned long rss, locked, kernel_page, key;
};

/* area_at fills in the mapping at an address; 0: nothing is mapped there. */
static inline int area_at(const volatile void *addr, struct area *a)
{
	unsigned long at = (unsigned long)addr;
	FILE *f = fopen("/proc/self/smaps", "r");
	CHECK(f, "smaps");
	char line[1024];
	int in = 0, found = 0;
	memset(a, 0, sizeof *a);
	while (fgets(line, sizeof line, f)) {
		unsigned long start, end;
		char perms[8];
		int n = 0;
		if ((line[0] < 'A' || line[0] > 'Z') && sscanf(line, "%lx-%lx %7s %*x %*s %*u %n", &start, &end, perms, &n) == 3) {
			if (found)
				break;
			in = start <= at && at < end;
			if (in) {
				found = 1;
				a->start = start;
				a->end = end;
				strcpy(a->perms, perms);
				snprintf(a->name, sizeof a->name, "%.255s", line + n);
				a->name[strcspn(a->name, "\n")] = 0;
			}
		} else if (in) {
			sscanf(line, "Rss: %lu", &a->rss);
			sscanf(line, "Locked: %lu", &a->locked);
			sscanf(line, "KernelPageSize: %lu", &a->kernel_page);
			sscanf(line, "ProtectionKey: %lu", &a->key);
			if (!strncmp(line, "VmFlags:", 8)) {
				snprintf(a->flags, sizeof a->flags, "%.255s", line + 8);
				a->flags[strcspn(a->flags, "\n")] = 0;
			}
		}
	}
	fclose(f);
	return found;
}

/* has_flag tells whether the mapping at an address has one of the VmFlags, such as "lo". */
static inline int has_flag(const volatile void *addr, const char *flag)
{
	struct area a;
	char word[8];
	snprintf(word, sizeof word, " %s ", flag);
	return area_at(addr, &a) && strstr(a.flags, word);
}

static inline char *anon(size_t size, int prot, int flags)
{
	char *p = mmap(NULL, size, prot, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
	CHECK(p != MAP_FAILED, "mmap of %zu bytes", size);
	return p;
}

/* faults tells whether reading (or writing) a byte gives a signal, and which. */
#include <setjmp.h>
static sigjmp_buf fault_jump;
static inline void on_fault(int sig) { siglongjmp(fault_jump, sig); }
static inline int faults(volatile char *p, int write)
{
	struct sigaction sa = {.sa_handler = on_fault, .sa_flags = SA_NODEFER}, segv, bus;
	sigaction(SIGSEGV, &sa, &segv);
	sigaction(SIGBUS, &sa, &bus);
	int sig = sigsetjmp(fault_jump, 1);
	if (!sig) {
		if (write)
			*p = 1;
		else
			(void)*p;
	}
	sigaction(SIGSEGV, &segv, NULL);
	sigaction(SIGBUS, &bus, NULL);
	return sig;
}

#endif
