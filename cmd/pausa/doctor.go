package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/pausa-run/pausa/cmd/pausa/internal/doctor"
	"github.com/pausa-run/pausa/cri/pausav1"
	"github.com/pausa-run/pausa/images"
)

func (p *program) doctorCommand() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "Check this host, and say what is wrong and what cures it",
		Description: "Looks at the kernel, cgroups, nftables, settings of the kernel, firewalls of others,\n" +
			"daemon and keeper, network configuration, names, disk, images, records that were set\n" +
			"aside, and what belongs to no pod. It works without the daemon, as far as that goes,\n" +
			"and changes nothing. The exit status is 1 if a check fails; warnings leave it at 0.\n\n" +
			"Examples:\n" +
			"  pausa doctor\n" +
			"  pausa doctor -o json\n" +
			"  pausa doctor --state /srv/pausa --run /run/pausa2",
		Flags: []cli.Flag{
			outputFlag("json", "yaml"), configFlag(),
			&cli.StringFlag{Name: "state", Usage: "`FOLDER` of what outlives a reboot, instead of the setting"}, runFlag(),
		},
		Action: p.doctor,
	}
}

func (p *program) doctor(ctx *cli.Context) error {
	format, err := outputOf(ctx, "json", "yaml")
	if err != nil {
		return err
	}
	settings, _, err := p.settings(ctx)
	if err != nil {
		return err
	}
	host := doctor.Host{Config: settings, Proc: "/proc", Version: version, DNS: dnsAddrs(settings.PodCIDRs, settings.ServiceCIDRs)}
	c, err := dial(ctx)
	if err == nil {
		defer c.close()
		var info *pausav1.InfoResponse
		if info, err = c.Info(ctx.Context, &pausav1.InfoRequest{}); err == nil {
			settings.State, settings.Run = info.GetStateDir(), info.GetRunDir()
			host.Daemon = doctor.Daemon{Version: info.GetVersion(), Orphans: c.orphans}
			host.Daemon.Healed, err = p.networkEvents(ctx, c)
		}
	}
	host.Daemon.Err = err
	if groups, err := findCgroups(cgroupRoot); err == nil {
		for _, dir := range groups.dirs {
			host.Cgroups = append(host.Cgroups, filepath.Join(dir, settings.CgroupParent))
		}
	}
	checks := doctor.Run(ctx.Context, host)
	if format != "" {
		err = p.printData(format, checks)
	} else {
		p.printChecks(checks)
		err = nil
	}
	if err == nil && doctor.Worst(checks) == doctor.Fail {
		return exitCode(1)
	}
	return err
}

func (p *program) printChecks(checks []doctor.Check) {
	for _, c := range checks {
		mark := map[string]string{doctor.OK: "ok", doctor.Warn: "warn", doctor.Fail: "FAIL"}[c.Verdict]
		fmt.Fprintf(p.out, "%-4s  %-12s  %s\n", mark, c.Name, oneLine(c.What))
		if c.Cure != "" {
			fmt.Fprintf(p.out, "%-4s  %-12s  cure: %s\n", "", "", oneLine(c.Cure))
		}
	}
}

// orphans counts what the image store has for nobody.
func (c *client) orphans(ctx context.Context) (count int, bytes uint64, err error) {
	report, err := c.AccountImages(ctx, &pausav1.AccountImagesRequest{})
	if err != nil {
		return 0, 0, err
	}
	var items []images.Item
	if err := json.Unmarshal(report.GetJson(), &items); err != nil {
		return 0, 0, fmt.Errorf("read the account of images: %w", err)
	}
	for i := range items {
		if items[i].Orphan() && items[i].Kind != images.KindTrash {
			count, bytes = count+1, bytes+items[i].Bytes
		}
	}
	return count, bytes, nil
}
