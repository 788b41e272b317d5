package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/pausa-run/pausa/cri/pausav1"
	"github.com/pausa-run/pausa/images"
)

// credential is the one for the registry of ref that the flags name; nil
// leaves the choice to the daemon.
func (p *program) credential(ctx *cli.Context, ref string) (*pausav1.RegistryCredential, error) {
	creds, file := ctx.String("creds"), ctx.String("authfile")
	switch {
	case creds != "" && file != "":
		return nil, badUsage(ctx, "--creds and --authfile exclude each other")
	case creds != "":
		return p.userCredential(creds)
	case file != "":
		return fileCredential(file, ref)
	}
	return nil, nil
}

func (p *program) userCredential(creds string) (*pausav1.RegistryCredential, error) {
	user, password, ok := strings.Cut(creds, ":")
	if !ok {
		fd, terminal := p.terminal()
		if !terminal {
			return nil, errors.New("--creds has no password, and there is no terminal to ask for it: write --creds USER:PASSWORD, or use --authfile")
		}
		fmt.Fprintf(p.err, "Password of %s: ", user)
		typed, err := term.ReadPassword(fd)
		fmt.Fprintln(p.err)
		if err != nil {
			return nil, fmt.Errorf("read password: %w", err)
		}
		password = string(typed)
	}
	if user == "" || password == "" {
		return nil, errors.New("--creds needs a user and a password: write --creds USER:PASSWORD")
	}
	return &pausav1.RegistryCredential{Username: user, Password: password}, nil
}

// fileCredential is the one of docker's configuration that fits ref best.
func fileCredential(file, ref string) (*pausav1.RegistryCredential, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	var keys images.Keyring
	if err := keys.Add(data); err != nil {
		return nil, fmt.Errorf("read credentials of %s: %w", file, err)
	}
	found, err := keys.For(ref)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s has no credential for %s", file, ref)
	}
	a := found[0]
	return &pausav1.RegistryCredential{Username: a.Username, Password: a.Password, Auth: a.Auth, IdentityToken: a.IdentityToken, Server: a.ServerAddress}, nil
}
