/* Stacks that grow (MAP_GROWSDOWN), one that has grown and several beside each other; the stack of the process. */
#include "memory.h"

#define ROOM (4UL << 20)

static char *stack_below(char *top)
{
	char *p = mmap(top - 4 * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0);
	CHECK(p == top - 4 * PAGE, "mmap");
	return top;
}

static char *touch_down(char *from, char *to)
{
	for (from -= PAGE; from >= to; from -= PAGE)
		*from = 'g';
	return to;
}

static int __attribute__((noinline)) deep(int n)
{
	volatile char room[4096];
	room[0] = n;
	return n ? deep(n - 1) + room[0] - (char)n : 0;
}

int main(void)
{
	char *room = anon(4 * ROOM, PROT_NONE, 0);
	CHECK(!munmap(room, 4 * ROOM), "munmap");
	char *a = stack_below(room + ROOM), *b = stack_below(room + 2 * ROOM), *c = stack_below(room + 3 * ROOM);
	touch_down(b, b - 64 * PAGE);
	strcpy(c - 100, "top");
	deep(200);
	ready();
	struct area x;
	CHECK(has_flag(a - 1, "gd") && has_flag(b - 1, "gd") && has_flag(c - 1, "gd"), "flags");
	CHECK(area_at(b - 1, &x) && x.start <= (unsigned long)(b - 64 * PAGE), "the stack that has grown");
	for (int i = 1; i <= 64; i++)
		CHECK(b[-i * (long)PAGE] == 'g', "page %d", i);
	CHECK(!strcmp(c - 100, "top"), "content");
	touch_down(a, a - 100 * PAGE);
	touch_down(b - 64 * PAGE, b - 300 * PAGE);
	CHECK(a[-100 * (long)PAGE] == 'g', "a stack that grows");
	CHECK(deep(1000) == 0, "the stack of the process");
	pass();
}
