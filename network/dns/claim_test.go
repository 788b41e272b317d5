package dns

import (
	"errors"
	"fmt"
	"os"
	goruntime "runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Claimed addresses are there, whoever takes them away meanwhile, and gone when released.
func TestClaim(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a network namespace of its own needs root")
	}
	done := make(chan error)
	go func() {
		goruntime.LockOSThread() // and never unlocked: the thread ends with its namespace
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			lo, err := netlink.LinkByName("lo")
			if err == nil {
				err = netlink.LinkSetUp(lo)
			}
			if err != nil {
				return err
			}
			ours := addrs("10.96.0.10", "fd96::a")
			has := func(want int) error {
				count := 0
				list, err := netlink.AddrList(lo, netlink.FAMILY_ALL)
				for _, a := range ours {
					if indexOf(list, a) >= 0 {
						count++
					}
				}
				if count != want {
					err = errors.Join(err, errors.New("lo has "+list[0].String()+" and others"))
				}
				return err
			}
			claim := func(want int) error {
				given, err := Claim(ours)
				if len(given) != want {
					err = errors.Join(err, fmt.Errorf("gave %v, want %d", given, want))
				}
				return err
			}
			return errors.Join(
				claim(2), claim(0), has(2),
				netlink.AddrDel(lo, hostAddr(ours[0])), has(1), claim(1), has(2),
				Release(ours), Release(ours), has(0))
		}()
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
