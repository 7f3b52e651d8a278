/* Protection keys (pkeys(7), where the processor has them): on mappings, allocated and given back, and those of execute-only memory. */
#include "memory.h"

static int k2, k3;

/* A handler runs with the rights of a new program, and leaving it by a jump leaves them in force. */
static int forbidden(char *p, int write)
{
	int sig = faults(p, write);
	pkey_set(k2, PKEY_DISABLE_WRITE);
	pkey_set(k3, PKEY_DISABLE_ACCESS);
	return sig;
}

int main(void)
{
	int left = 0, k1 = pkey_alloc(0, 0);
	k2 = pkey_alloc(0, PKEY_DISABLE_WRITE);
	k3 = pkey_alloc(0, PKEY_DISABLE_ACCESS);
	int k4 = pkey_alloc(0, 0);
	if (k1 < 0) {
		ready();
		pass();
	}
	CHECK(k1 == 1 && k4 == 4, "keys %d %d %d %d", k1, k2, k3, k4);
	char *plain = anon(4 * PAGE, PROT_READ | PROT_WRITE, 0), *closed = anon(4 * PAGE, PROT_READ | PROT_WRITE, 0), *ro = anon(4 * PAGE, PROT_READ | PROT_WRITE, 0),
	     *code = anon(2 * PAGE, PROT_READ | PROT_WRITE, 0), *orphan = anon(2 * PAGE, PROT_READ | PROT_WRITE, 0);
	strcpy(closed + PAGE, "closed");
	strcpy(ro, "read-only");
	strcpy(orphan, "orphan");
	memcpy(code, "\xc3", 1);
	CHECK(!mprotect(code, 2 * PAGE, PROT_EXEC), "execute-only memory"); /* takes key 5 */
	int k6 = pkey_alloc(0, 0);
	CHECK(!pkey_mprotect(closed, 4 * PAGE, PROT_READ | PROT_WRITE, k3) && !pkey_mprotect(ro, 2 * PAGE, PROT_READ | PROT_WRITE, k2) &&
		!pkey_mprotect(plain, PAGE, PROT_READ | PROT_WRITE, k6) && !pkey_mprotect(orphan, 2 * PAGE, PROT_READ | PROT_WRITE, k4), "pkey_mprotect");
	CHECK(!pkey_free(k4), "pkey_free");
	ready();
	struct area a;
	CHECK(area_at(closed, &a) && a.key == 3 && area_at(ro, &a) && a.key == 2 && area_at(ro + 2 * PAGE, &a) && a.key == 0, "keys of mappings");
	CHECK(area_at(plain, &a) && a.key == (unsigned)k6 && area_at(orphan, &a) && a.key == 4, "keys of mappings");
	CHECK(area_at(code, &a) && a.key == 5 && !strncmp(a.perms, "--xp", 4), "execute-only memory: %s, key %lu", a.perms, a.key);
	CHECK(pkey_get(k1) == 0 && pkey_get(k2) == PKEY_DISABLE_WRITE && pkey_get(k3) == PKEY_DISABLE_ACCESS, "rights");
	CHECK(forbidden(closed + PAGE, 0) == SIGSEGV, "reading what is closed");
	CHECK(forbidden(ro, 1) == SIGSEGV && !forbidden(ro, 0), "writing what is read-only");
#ifdef __x86_64__
	CHECK(faults(code, 0) == SIGSEGV, "reading execute-only memory");
	((void (*)(void))code)();
#endif
	pkey_set(k2, PKEY_DISABLE_WRITE);
	pkey_set(k3, 0);
	CHECK(!strcmp(closed + PAGE, "closed") && !strcmp(ro, "read-only"), "content");
	CHECK(pkey_alloc(0, 0) == 4, "the key that was given back is not the next");
	CHECK(pkey_alloc(0, 0) == 7, "the key after those that are taken");
	while (pkey_alloc(0, 0) > 0)
		left++;
	CHECK(left == 8, "%d keys were left", left);
	CHECK(!strcmp(orphan, "orphan"), "content");
	pass();
}
