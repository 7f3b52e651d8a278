/* Protections: memory with content that may not be read, only written, only read; pieces of one mapping; code. */
#include "memory.h"

static int prots[] = {PROT_NONE, PROT_READ, PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ | PROT_EXEC, PROT_READ | PROT_WRITE | PROT_EXEC, PROT_WRITE | PROT_EXEC};
enum { N = sizeof prots / sizeof prots[0] };

int main(void)
{
	char *p = anon(2 * N * PAGE, PROT_READ | PROT_WRITE, 0);
	int f = open("file", O_RDWR | O_CREAT | O_TRUNC, 0666);
	CHECK(f >= 0 && !ftruncate(f, N * PAGE), "file");
	char *file = mmap(NULL, N * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, f, 0), *shared = mmap(NULL, N * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
	CHECK(file != MAP_FAILED && shared != MAP_FAILED, "mmap");
	for (int i = 0; i < N; i++) {
		sprintf(p + i * PAGE, "memory %d", i);
		sprintf(file + i * PAGE, "file %d", i);
		CHECK(!mprotect(p + i * PAGE, PAGE, prots[i]) && !mprotect(file + i * PAGE, PAGE, prots[i]) && !mprotect(shared + i * PAGE, PAGE, prots[i]), "mprotect");
	}
	ready();
	for (int i = 0; i < N; i++) {
		char perms[8], text[32];
		struct area a;
		sprintf(perms, "%c%c%c", prots[i] & PROT_READ ? 'r' : '-', prots[i] & PROT_WRITE ? 'w' : '-', prots[i] & PROT_EXEC ? 'x' : '-');
		CHECK(area_at(p + i * PAGE, &a) && !strncmp(a.perms, perms, 3), "%d: %s instead of %s", i, a.perms, perms);
		CHECK(area_at(file + i * PAGE, &a) && !strncmp(a.perms, perms, 3), "file %d: %s instead of %s", i, a.perms, perms);
		CHECK(area_at(shared + i * PAGE, &a) && !strncmp(a.perms, perms, 3), "shared %d: %s instead of %s", i, a.perms, perms);
		CHECK(!!faults(p + i * PAGE, 1) == !(prots[i] & PROT_WRITE), "writing %d", i);
		CHECK(!mprotect(p + i * PAGE, PAGE, PROT_READ | PROT_WRITE), "mprotect");
		sprintf(text, "memory %d", i);
		CHECK(!strcmp(p + i * PAGE + 1, text + 1), "content of %d: %s", i, p + i * PAGE);
		CHECK(!mprotect(file + i * PAGE, PAGE, PROT_READ) && !mprotect(shared + i * PAGE, PAGE, PROT_READ | PROT_WRITE), "mprotect");
		sprintf(text, "file %d", i);
		CHECK(!strcmp(file + i * PAGE, text), "content of the file's %d: %s", i, file + i * PAGE);
		shared[i * PAGE + 100] = 's';
	}
	CHECK(p[N * PAGE] == 0, "the rest");
	pass();
}
