/* A UTS namespace keeps its names. */
#include "../c/workload.h"
#include <sys/utsname.h>

int main(void)
{
	CHECK(!sethostname("a-name", 6) && !setdomainname("a.domain", 8), "setting names");
	ready();
	struct utsname u;
	uname(&u);
	CHECK(!strcmp(u.nodename, "a-name") && !strcmp(u.domainname, "a.domain"), "names are %s and %s", u.nodename, u.domainname);
	CHECK(getpid() == 1 && getsid(0) == 1, "pid %d, session %d", getpid(), getsid(0));
	pass();
}
