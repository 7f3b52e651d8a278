//go:build linux

package mem

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"migrate/e2e/vm/initramfs"
	"migrate/engine/kernel/kerneltest"
)

// Soft-dirty bits are tried on Debian's own kernel, in a virtual machine whose init is this very test binary.

const (
	machineEnv    = "MIGRATE_MEM_MACHINE"
	machinePassed = "MACHINE: every test passed"
)

// machineMain is the init of the virtual machine.
func machineMain(m *testing.M) {
	code := 1
	for _, fs := range []struct{ kind, at string }{{"proc", "/proc"}, {"tmpfs", "/tmp"}, {"devtmpfs", "/dev"}, {"sysfs", "/sys"}} {
		if err := unix.Mount(fs.kind, fs.at, fs.kind, 0, ""); err != nil {
			fmt.Println(fs.at, err)
		}
	}
	debug.SetGCPercent(400) // the processor is emulated
	if code = m.Run(); code == 0 {
		fmt.Println(machinePassed)
	}
	unix.Sync()
	fmt.Println(unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

func TestSoftDirtyOnDebianKernel(t *testing.T) {
	kerneltest.Root(t)
	if testing.Short() {
		t.Skip("a virtual machine takes long")
	}
	if runtime.GOARCH != "amd64" {
		t.Skip("the machine is an amd64 one")
	}
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		kerneltest.Lack(t, "qemu-system-x86_64 is not installed (Debian: qemu-system-x86)")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	initrd := filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(initrd, archive(t), 0o600); err != nil {
		t.Fatal(err)
	}
	args := "-test.v -test.short -test.run ^(TestSoftDirty|TestHashesSeeEverything|TestRandomProgram)$ -tracker soft-dirty -seeds 2"
	cmd := exec.CommandContext(ctx, qemu, "-accel", "tcg", "-cpu", "max", "-m", "1024", "-display", "none", "-no-reboot", "-nodefaults", "-serial", "stdio",
		"-kernel", debianKernel(ctx, t), "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1 "+machineEnv+"=1 -- "+args)
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte(machinePassed)) {
		t.Fatalf("%v\n%s", err, out)
	}
	for line := range strings.SplitSeq(string(out), "\n") {
		if strings.Contains(line, "--- ") {
			t.Log(strings.TrimSpace(line))
		}
	}
}

// debianKernel returns the kernel of Debian 12, taken from its package and kept.
func debianKernel(ctx context.Context, t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = "/var/cache"
	}
	dir := filepath.Join(cache, "migrate-tests")
	script := `set -e
mkdir -p "$1"; cd "$1"
[ -e vmlinuz ] && exit 0
package=$(apt-cache depends linux-image-amd64 | sed -n 's/ *Depends: //p' | head -1)
trap 'rm -rf "$1/part"' EXIT
mkdir -p part; cd part
apt-get download "$package"
dpkg-deb --fsys-tarfile ./*.deb | tar x --wildcards './boot/vmlinuz*'
mv boot/vmlinuz* ../vmlinuz`
	if out, err := exec.CommandContext(ctx, "sh", "-c", script, "sh", dir).CombinedOutput(); err != nil {
		kerneltest.Lack(t, fmt.Sprintf("Debian's kernel cannot be fetched: %v: %s", err, out))
	}
	return filepath.Join(dir, "vmlinuz")
}

// archive is an initramfs with this binary as /init.
func archive(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := initramfs.NewWriter(&b)
	for _, dir := range []string{"proc", "tmp", "dev", "sys"} {
		w.Dir(dir, 0o755)
	}
	w.Device("dev/console", 0o600, 5, 1)
	w.Device("dev/null", 0o666, 1, 3)
	w.Copy("init", 0o755, "/proc/self/exe")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
