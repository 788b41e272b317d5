package bridge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/internal/nft"
)

// Plugin does the work for any number of networks in the network namespace that
// it was made in. It may be used by several goroutines.
type Plugin struct {
	log     *slog.Logger
	hostNS  int             // the host's network namespace
	rulesNS int             // -1: the same
	host    *netlink.Handle // in it
	slow    *netlink.Handle // the same, for deletions, which block
	nft     *nft.Conn
	guard   *spoofGuard
	local   *localPorts // nil: host ports do not answer on loopback

	mu      sync.Mutex
	ensured map[string]hostState // networks whose host side has been made, by fingerprint of their configuration
	living  map[string]bool      // owners attached by this process: GC leaves them alone
	adding  map[string]bool      // owners whose ADD is under way: Sync leaves their links alone

	ports ports

	watching  sync.WaitGroup
	stopWatch chan struct{} // nil: links are not watched

	making sync.Mutex // held while a host side is made, besides its store's lock
	reaper reaper
}

// hostState is what ADD needs to know of a network's host side.
type hostState struct {
	bridge *netlink.Bridge
	mtu    int
}

// Request is one call of the plugin: CNI's environment and standard input.
type Request struct {
	Command     string // ADD, DEL, CHECK, STATUS, GC, VERSION
	ContainerID string
	NetNS       string
	IfName      string
	Args        string
	Stdin       []byte
}

// New connects to the network namespace of the calling thread.
func New(log *slog.Logger) (*Plugin, error) { return NewWithRules(log, "") }

// NewWithRules is New with the rules in another network namespace, that of the
// file, where no packet meets them: for those who want to see them only.
func NewWithRules(log *slog.Logger, rulesNS string) (*Plugin, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	p := &Plugin{log: log, ensured: map[string]hostState{}, living: map[string]bool{}, adding: map[string]bool{}}
	p.ports = ports{pods: map[string]string{}, suspects: map[string]bool{}}
	p.hostNS, p.rulesNS = -1, -1
	if err := p.open(rulesNS); err != nil {
		return nil, errors.Join(fmt.Errorf("open built-in network: %w", err), p.Close())
	}
	return p, nil
}

func (p *Plugin) open(rulesNS string) (err error) {
	if p.hostNS, err = openNetNS("/proc/thread-self/ns/net"); err != nil {
		return err
	}
	if p.host, err = netlink.NewHandleAt(netns.NsHandle(p.hostNS), unix.NETLINK_ROUTE); err != nil {
		return err
	}
	if p.slow, err = netlink.NewHandleAt(netns.NsHandle(p.hostNS), unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER); err != nil {
		return err
	}
	rules := p.hostNS
	if rulesNS == "" {
		rulesNS = "/proc/thread-self/ns/net"
	} else if rules, err = openNetNS(rulesNS); err != nil {
		return err
	} else {
		p.rulesNS = rules
	}
	if p.guard, err = openSpoofGuard(rules); err != nil {
		return err
	}
	p.nft, err = nft.OpenAt(rulesNS)
	return err
}

// Close waits for deletions and closes the connections. Networks and pods stay.
func (p *Plugin) Close() error {
	p.Drain()
	if p.stopWatch != nil {
		close(p.stopWatch)
		p.watching.Wait()
	}
	errs := []error{p.local.close()}
	if p.nft != nil {
		errs = append(errs, p.nft.Close())
	}
	if p.guard != nil {
		errs = append(errs, p.guard.close())
	}
	for _, h := range []*netlink.Handle{p.host, p.slow} {
		if h != nil {
			h.Close()
		}
	}
	for _, ns := range []int{p.hostNS, p.rulesNS} {
		if ns >= 0 {
			errs = append(errs, unix.Close(ns))
		}
	}
	return errors.Join(errs...)
}

// Run does what a CNI plugin does: the answer is what belongs on standard
// output, the error is always a *types.Error.
func (p *Plugin) Run(ctx context.Context, r Request) ([]byte, error) {
	out, err := p.run(ctx, r)
	if err == nil {
		return out, nil
	}
	var known *types.Error
	if errors.As(err, &known) {
		return nil, known
	}
	return nil, types.NewError(types.ErrInternal, strings.ToLower(r.Command)+" "+r.ContainerID, err.Error())
}

func (p *Plugin) run(ctx context.Context, r Request) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, types.NewError(types.ErrTryAgainLater, "begin "+r.Command, err.Error())
	}
	conf, err := prepare(r)
	if err != nil {
		return nil, err
	}
	st, err := openStore(conf.DataDir, conf.Name)
	if err != nil {
		return nil, types.NewError(types.ErrIOFailure, "open store", err.Error())
	}
	c := call{Plugin: p, conf: conf, store: st, rules: rules{conf.Bridge}, req: r, owner: r.ContainerID + ":" + r.IfName}
	switch r.Command {
	case "ADD":
		return c.add()
	case "DEL":
		return nil, c.del()
	case "CHECK":
		return nil, c.check()
	case "STATUS":
		return nil, c.status()
	default:
		return nil, c.gc()
	}
}

// call is one request with what belongs to it.
type call struct {
	*Plugin
	conf  *Conf
	store *store
	rules rules
	req   Request
	owner string
}

// network tells this network from others with the same name.
func (c call) network() string { return c.conf.DataDir + "/" + c.conf.Name }

// prepare checks a request and reads its configuration.
func prepare(r Request) (*Conf, error) {
	switch r.Command {
	case "ADD", "DEL", "CHECK":
		if err := checkIDs(r); err != nil {
			return nil, err
		}
	case "STATUS", "GC":
	default:
		return nil, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("unknown CNI_COMMAND %q", r.Command), "")
	}
	conf, err := ParseConf(r.Stdin)
	if err != nil {
		return nil, err
	}
	reconciler := version.Reconciler{}
	if bad := reconciler.Check(conf.CNIVersion, versions()); bad != nil {
		return nil, types.NewError(types.ErrIncompatibleCNIVersion, "incompatible CNI versions", bad.Details())
	}
	since := map[string]string{"CHECK": "0.4.0", "STATUS": "1.1.0", "GC": "1.1.0"}[r.Command]
	if since != "" {
		if ok, err := version.GreaterThanOrEqualTo(conf.CNIVersion, since); err != nil || !ok {
			return nil, types.NewError(types.ErrIncompatibleCNIVersion, fmt.Sprintf("version %s does not know %s", conf.CNIVersion, r.Command), "")
		}
	}
	if r.Command == "ADD" && len(conf.PrevResult) > 0 {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "use plugin pausa after another one", "it must be the first of the list")
	}
	return conf, nil
}

func checkIDs(r Request) error {
	if !plainName(r.ContainerID, 200) {
		return types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_CONTAINERID", fmt.Sprintf("%q: want letters, digits, '_', '.' and '-'", r.ContainerID))
	}
	if !plainName(r.IfName, 15) {
		return types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_IFNAME", fmt.Sprintf("%q: want at most 15 letters, digits, '_', '.' and '-'", r.IfName))
	}
	if r.NetNS == "" && r.Command != "DEL" {
		return types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_NETNS", "is missing")
	}
	return nil
}

// podName is "namespace/name" from CNI_ARGS, else the id.
func podName(r Request) string {
	args := map[string]string{}
	for _, kv := range strings.Split(r.Args, ";") {
		if k, v, ok := strings.Cut(kv, "="); ok {
			args[k] = v
		}
	}
	if args["K8S_POD_NAME"] == "" {
		return r.ContainerID
	}
	return args["K8S_POD_NAMESPACE"] + "/" + args["K8S_POD_NAME"]
}

// PluginMain is the plugin as an executable: environ is os.Environ's, the answer
// or CNI's error object goes to stdout. It returns the exit status.
func PluginMain(stdin io.Reader, stdout io.Writer, environ []string) int {
	env := map[string]string{}
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	conf, err := io.ReadAll(stdin)
	var answer []byte
	if err == nil {
		answer, err = mainRun(Request{
			Command: env["CNI_COMMAND"], ContainerID: env["CNI_CONTAINERID"], NetNS: env["CNI_NETNS"],
			IfName: env["CNI_IFNAME"], Args: env["CNI_ARGS"], Stdin: conf,
		})
	}
	status := 0
	if err != nil {
		status, answer = 1, errorObject(err, conf)
	}
	if _, err := stdout.Write(answer); err != nil {
		return 1
	}
	return status
}

// errorObject is CNI's form of an error.
func errorObject(err error, conf []byte) []byte {
	var known *types.Error
	if !errors.As(err, &known) {
		known = types.NewError(types.ErrInternal, "run plugin pausa", err.Error())
	}
	object, err := json.MarshalIndent(struct {
		CNIVersion string `json:"cniVersion"`
		*types.Error
	}{confVersion(conf), known}, "", "    ")
	if err != nil {
		return nil
	}
	return append(object, '\n')
}

func confVersion(stdin []byte) string {
	decoder := version.ConfigDecoder{}
	v, err := decoder.Decode(stdin)
	if err != nil {
		return version.Current()
	}
	return v
}

func mainRun(r Request) ([]byte, error) {
	if r.Command == "VERSION" {
		var out bytes.Buffer
		err := versions().Encode(&out)
		return out.Bytes(), err
	}
	p, err := New(nil)
	if err != nil {
		return nil, types.NewError(types.ErrPluginNotAvailable, "open network", err.Error())
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := p.Run(ctx, r)
	return out, errors.Join(err, p.Close())
}
