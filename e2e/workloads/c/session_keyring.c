/* A session keyring as a login and a service have it: with the user's keyring and systemd's key in it. The destination's takes its place. */
#include "workload.h"
#include <linux/keyctl.h>

int main(void)
{
	CHECK(syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL) > 0, "a session keyring");
	CHECK(!syscall(SYS_keyctl, KEYCTL_LINK, KEY_SPEC_USER_KEYRING, KEY_SPEC_SESSION_KEYRING), "link");
	CHECK(syscall(SYS_add_key, "user", "invocation_id", "0123456789abcdef", 16, KEY_SPEC_SESSION_KEYRING) > 0, "add_key");
	ready();
	CHECK(syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0) > 0, "no session keyring");
	pass();
}
