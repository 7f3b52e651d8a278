/* Memory that the kernel may drop (MAP_DROPPABLE, where the kernel has it): it may be empty, but not become anything else. */
#include "memory.h"

#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 0x08
#endif

int main(void)
{
	char *p = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_DROPPABLE | MAP_ANONYMOUS, -1, 0);
	int have = p != MAP_FAILED;
	CHECK(have || errno == EINVAL, "mmap");
	if (have)
		memset(p, 'd', 4 * PAGE);
	ready();
	if (!have)
		pass();
	CHECK(has_flag(p, "dp") && has_flag(p, "wf") && has_flag(p, "dd"), "flags");
	for (unsigned i = 0; i < 8; i++)
		CHECK(p[i * PAGE] == 0 || (i < 4 && p[i * PAGE] == 'd'), "page %u", i);
	p[7 * PAGE] = 1;
	pass();
}
