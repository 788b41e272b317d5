package main

import (
	"fmt"
	goruntime "runtime"

	"github.com/urfave/cli/v2"

	"github.com/pausa-run/pausa/cri/pausav1"
)

// version is that of the command line and the daemon, set by the build: -ldflags "-X main.version=…".
var version = "dev"

// versions is what the version command tells.
type versions struct {
	Client   string `json:"client"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
	Daemon   string `json:"daemon,omitempty"`
	Keeper   string `json:"keeper,omitempty"`
}

func (p *program) versionCommand() *cli.Command {
	return &cli.Command{
		Name:  "version",
		Usage: "Print the versions of this program, the daemon and the keeper",
		Description: "Without a daemon the client's version is printed all the same, and the exit\n" +
			"status is 1, unless --client is given.\n\n" +
			"Examples:\n" +
			"  pausa version\n" +
			"  pausa version --client -o json",
		Flags:  []cli.Flag{&cli.BoolFlag{Name: "client", Usage: "do not ask the daemon"}, outputFlag("json", "yaml")},
		Action: p.version,
	}
}

func (p *program) version(ctx *cli.Context) error {
	format, err := outputOf(ctx, "json", "yaml")
	if err != nil {
		return err
	}
	v := versions{
		Client: version, Go: goruntime.Version(),
		Platform: goruntime.GOOS + "/" + goruntime.GOARCH,
	}
	var missing error
	if !ctx.Bool("client") {
		info, err := p.askInfo(ctx)
		v.Daemon, v.Keeper, missing = info.GetVersion(), info.GetKeeperVersion(), err
	}
	if format != "" {
		err = p.printData(format, v)
	} else {
		rows := [][]string{{"Client:", v.Client}, {"Built with:", v.Go + " " + v.Platform}}
		if v.Daemon != "" {
			rows = append(rows, []string{"Daemon:", v.Daemon}, []string{"Keeper:", orNone(v.Keeper)})
		}
		err = p.printRows(rows)
	}
	if err != nil {
		return err
	}
	return missing
}

func (p *program) askInfo(ctx *cli.Context) (*pausav1.InfoResponse, error) {
	c, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	defer c.close()
	info, err := c.Info(ctx.Context, &pausav1.InfoRequest{})
	return info, first(ctx.Context, err)
}

// hostInfo is what the info command tells, named as in settings.
type hostInfo struct {
	Version       string   `json:"version"`
	KeeperVersion string   `json:"keeperVersion"`
	DaemonPID     int32    `json:"daemonPID"`
	KeeperPID     int32    `json:"keeperPID"`
	StartedAt     string   `json:"startedAt"`
	State         string   `json:"state"`
	Run           string   `json:"run"`
	Cgroup        string   `json:"cgroup"`
	Pods          int32    `json:"pods"`
	Containers    int32    `json:"containers"`
	Warnings      []string `json:"warnings"`
}

func (p *program) infoCommand() *cli.Command {
	return &cli.Command{
		Name:  "info",
		Usage: "Tell about the daemon and this host",
		Description: "Warnings are limits of this host that the daemon lives with.\n\n" +
			"Examples:\n" +
			"  pausa info\n" +
			"  pausa info -o json",
		Flags:  []cli.Flag{outputFlag("json", "yaml")},
		Action: p.info,
	}
}

func (p *program) info(ctx *cli.Context) error {
	format, err := outputOf(ctx, "json", "yaml")
	if err != nil {
		return err
	}
	a, err := p.askInfo(ctx)
	if err != nil {
		return err
	}
	if format != "" {
		return p.printData(format, hostInfo{
			a.GetVersion(), a.GetKeeperVersion(), a.GetDaemonPid(), a.GetKeeperPid(), a.GetStartedAt(),
			a.GetStateDir(), a.GetRunDir(), a.GetCgroup(), a.GetPods(), a.GetContainers(), append([]string{}, a.GetWarnings()...),
		})
	}
	rows := [][]string{
		{"Daemon:", fmt.Sprintf("%s, pid %d, since %s", a.GetVersion(), a.GetDaemonPid(), a.GetStartedAt())},
		{"Keeper:", fmt.Sprintf("%s, pid %d", orNone(a.GetKeeperVersion()), a.GetKeeperPid())},
		{"State:", a.GetStateDir()},
		{"Run:", a.GetRunDir()},
		{"Cgroup:", a.GetCgroup()},
		{"Pods:", fmt.Sprint(a.GetPods())},
		{"Containers:", fmt.Sprint(a.GetContainers())},
	}
	for _, w := range a.GetWarnings() {
		rows = append(rows, []string{"Warning:", w})
	}
	return p.printRows(rows)
}
