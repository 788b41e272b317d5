package hosttest

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// SendFrame sends an Ethernet frame as it is.
func (h *Host) SendFrame(iface string, frame []byte) error {
	return h.Do(func() error {
		link, err := h.Net.LinkByName(iface)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index, Halen: 6})
	})
}

// Capture listens on an interface of each host. The returned function tells whether a frame has
// come in there within a time that is ample.
func Capture(t testing.TB, on map[*Host]string) (seen func(frame []byte) bool) {
	t.Helper()
	var fds []int
	for h, iface := range on {
		h.Must(func() error {
			link, err := h.Net.LinkByName(iface)
			if err != nil {
				return err
			}
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(htons(unix.ETH_P_ALL)))
			if err != nil {
				return err
			}
			fds = append(fds, fd)
			return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: link.Attrs().Index})
		})
	}
	return func(frame []byte) bool {
		defer func() {
			for _, fd := range fds {
				_ = unix.Close(fd)
			}
		}()
		buf := make([]byte, 2048)
		for end := time.Now().Add(100 * time.Millisecond); time.Now().Before(end); time.Sleep(time.Millisecond) {
			for _, fd := range fds {
				n, from, err := unix.Recvfrom(fd, buf, 0)
				if err != nil {
					continue
				}
				if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype != unix.PACKET_OUTGOING && bytes.Equal(buf[:n], frame) {
					return true
				}
			}
		}
		return false
	}
}

func htons(v uint16) uint16 { return binary.NativeEndian.Uint16([]byte{byte(v >> 8), byte(v)}) }

// UDP is a frame with a datagram of one byte.
func UDP(from, to net.HardwareAddr, src, dst netip.Addr, sport, dport uint16) []byte {
	udp := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, sport), dport)
	udp = append(udp, 0, 9, 0, 0, 'x') // no checksum: IPv6 would want one, but not before it has passed
	if src.Is4() {
		return IP(from, to, src, dst, unix.IPPROTO_UDP, udp)
	}
	binary.BigEndian.PutUint16(udp[6:], checksum(pseudo(src, dst, unix.IPPROTO_UDP, len(udp)), udp))
	return IP(from, to, src, dst, unix.IPPROTO_UDP, udp)
}

// ICMPv6 is a frame to a multicast address with a message of one type; body is what follows the checksum.
func ICMPv6(from net.HardwareAddr, src, dst netip.Addr, kind byte, body []byte) []byte {
	msg := append([]byte{kind, 0, 0, 0}, body...)
	binary.BigEndian.PutUint16(msg[2:], checksum(pseudo(src, dst, unix.IPPROTO_ICMPV6, len(msg)), msg))
	d := dst.As16()
	frame := IP(from, net.HardwareAddr{0x33, 0x33, d[12], d[13], d[14], d[15]}, src, dst, unix.IPPROTO_ICMPV6, msg)
	frame[14+7] = 255 // hop limit, as neighbour discovery demands
	return frame
}

// ARP is an answer that is meant for everybody: sender has src.
func ARP(from, sender net.HardwareAddr, src, target netip.Addr) []byte {
	frame := append(append(bytes.Repeat([]byte{255}, 6), from...), 8, 6, 0, 1, 8, 0, 6, 4, 0, 2)
	frame = append(append(frame, sender...), src.AsSlice()...)
	return append(append(frame, make([]byte, 6)...), target.AsSlice()...)
}

// IP is a frame with an IP packet.
func IP(from, to net.HardwareAddr, src, dst netip.Addr, proto byte, payload []byte) []byte {
	frame := append(append([]byte{}, to...), from...)
	if src.Is6() {
		frame = append(frame, 0x86, 0xdd, 0x60, 0, 0, 0)
		frame = binary.BigEndian.AppendUint16(frame, uint16(len(payload)))
		frame = append(append(append(frame, proto, 64), src.AsSlice()...), dst.AsSlice()...)
		return append(frame, payload...)
	}
	ip := []byte{0x45, 0, 0, byte(20 + len(payload)), 0, 0, 0, 0, 64, proto, 0, 0}
	ip = append(append(ip, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	return append(append(append(frame, 8, 0), ip...), payload...)
}

func pseudo(src, dst netip.Addr, proto byte, length int) []byte {
	b := append(src.AsSlice(), dst.AsSlice()...)
	return append(b, 0, 0, byte(length>>8), byte(length), 0, 0, 0, proto)
}

// checksum is the internet's, of parts that have an even length but for the last.
func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, b := range parts {
		for i, x := range b {
			if i%2 == 0 {
				sum += uint32(x) << 8
			} else {
				sum += uint32(x)
			}
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
