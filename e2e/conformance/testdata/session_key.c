/* A program with a key of its own in its session keyring, which is not carried. */
#include "../../workloads/c/workload.h"
#include <linux/keyctl.h>

int main(void)
{
	CHECK(syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL) > 0, "a session keyring");
	long key = syscall(SYS_add_key, "user", "ticket", "secret", 6, KEY_SPEC_SESSION_KEYRING);
	CHECK(key > 0, "add_key");
	ready();
	char got[8];
	CHECK(syscall(SYS_keyctl, KEYCTL_READ, key, got, sizeof got) == 6 && !memcmp(got, "secret", 6), "the key has gone");
	pass();
}
