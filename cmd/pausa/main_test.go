package main

import (
	"context"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares text with testdata/NAME.
func golden(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text != string(want) {
		t.Errorf("%s differs (go test -update writes it); got:\n%s", path, text)
	}
}

// commandPaths are the words of every command that people see.
func commandPaths(commands []*cli.Command, before []string) [][]string {
	var out [][]string
	for _, c := range commands {
		if !c.Hidden {
			path := append(append([]string{}, before...), c.Name)
			out = append(append(out, path), commandPaths(c.Subcommands, path)...)
		}
	}
	return out
}

func TestHelp(t *testing.T) {
	var all strings.Builder
	r := runLine(t, "", "--help")
	r.want(t, 0, "USAGE:", "")
	all.WriteString(r.out)
	p := &program{}
	for _, path := range commandPaths(p.app().Commands, nil) {
		r := runLine(t, "", append(path, "--help")...)
		r.want(t, 0, "Examples:\n", "")
		if !strings.Contains(r.out, "pausa "+strings.Join(path, " ")) {
			t.Errorf("help of %v has no example of it", path)
		}
		all.WriteString("\n---- " + strings.Join(path, " ") + "\n" + r.out)
	}
	golden(t, "help.txt", all.String())
	if r := runLine(t, ""); r.code != 0 || !strings.Contains(r.out, "COMMANDS:") {
		t.Errorf("without arguments: %+v", r)
	}
}

func TestUsageErrors(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"gte pods", `error: unknown command "gte": did you mean "get"?` + "\nsee 'pausa --help'\n"},
		{"images lst", `error: unknown command "lst": did you mean "list"?` + "\nsee 'pausa images --help'\n"},
		{"get pods --namespac x", "error: unknown flag --namespac: did you mean --namespace?\nsee 'pausa get --help'\n"},
		{"get pods -Z", "error: unknown flag -Z\n"},
		{"exec x -Z", "put -- before that"},
		{"--frob get", "unknown flag --frob"},
		{"get", "name a kind: pods, services"},
		{"get podz", `did you mean "pod`},
		{"get daemonsets", "not supported yet"},
		{"get pods -o xml", `unknown output format "xml": there are wide, yaml, json, name`},
		{"get pods,svc x", "name one kind"},
		{"get pods x pod/y", "mixes two ways"},
		{"get pod/", `"pod/" is not KIND/NAME`},
		{"get pods x -A", "a name cannot be combined"},
		{"delete", "name what to delete"},
		{"delete pods", "name the pods to delete, or add --all"},
		{"delete pods x --all", "a name cannot be combined"},
		{"delete --all -l a=b", "exclude each other"},
		{"delete -f x --all", "-f cannot be combined"},
		{"delete pod x --force --grace-period 5", "--force is a grace period of 0"},
		{"delete pod x --grace-period -5", "must be 0 or more"},
		{"completion tcsh", "bash, zsh or fish"},
		{"serve now", `unexpected argument "now"`},
		{"events pod/x", `unexpected argument "pod/x": for the events of one object write --for pod/x`},
		{"events --for x", "--for x: write KIND/NAME, as in pod/web-1"},
		{"events --for pot/x", "--for pot/x: unknown kind"},
		{"events --types Warn", "--types Warn: there are Normal and Warning"},
	} {
		if r := runLine(t, "", strings.Fields(c.line)...); r.code != 2 || !strings.Contains(r.err, c.want) || r.out != "" {
			t.Errorf("pausa %s: exit %d\n%s%s, want %q", c.line, r.code, r.out, r.err, c.want)
		}
	}
}

func TestNoDaemon(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "no.sock")
	for _, line := range []string{
		"get pods", "describe pod x", "delete pod x", "logs x", "exec x -- ls", "attach x", "wait --for=delete pod/x", "events",
		"run x", "images list", "images rm x", "images pull x", "info", "version",
	} {
		r := runLine(t, "", append(strings.Fields(line)[:1:1], append([]string{"--socket", socket}, strings.Fields(line)[1:]...)...)...)
		if r.code != 1 || !strings.Contains(r.err, "error: the daemon is not running at "+socket+": start it with 'pausa serve'") {
			t.Errorf("pausa %s: exit %d, %s", line, r.code, r.err)
		}
	}
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	runLine(t, "", "--socket", socket, "get", "pods").want(t, 1, "", "the daemon is not running at "+socket)
}

func TestArrange(t *testing.T) {
	app := (&program{}).app()
	for line, want := range map[string]string{
		"get pods -A":                        "get -A -- pods",
		"get pods --socket /x -o wide hello": "--socket /x get -o wide -- pods hello",
		"get -ojson pods -n=x":               "get -o=json -n=x -- pods",
		"get pods -Aowide":                   "get -A -o=wide -- pods",
		"exec -it web -c side -- sh -c ls":   "exec -i -t -c side -- web sh -c ls",
		"exec web ls -l":                     "exec -- web ls -l",
		"exec -itn shop web sh":              "exec -i -t -n shop -- web sh",
		"run --rm img sh -c x --rm":          "run --rm -- img sh -c x --rm",
		"images rm a --ignore-not-found":     "images rm --ignore-not-found -- a",
		"apply -f - -f x":                    "apply -f - -f x",
		"get pods -- -x":                     "get -- pods -x",
		"logs web --tail -1":                 "logs --tail -1 -- web",
		"get get":                            "get -- get",
		"--bogus get":                        "--bogus get",
		"get --wait=false":                   "get --wait=false",
		"delete --wait=false pod x":          "delete --wait=false -- pod x",
	} {
		got := strings.Join(arrange(app, append([]string{"pausa"}, strings.Fields(line)...)), " ")
		if got != "pausa "+want {
			t.Errorf("%q becomes %q, want %q", line, got, "pausa "+want)
		}
	}
}

func TestHelpIsNoPodName(t *testing.T) {
	f := startFake(t)
	f.run(t, "logs", "help").want(t, 1, "", `pods "help" not found`)
	f.run(t, "logs", "h").want(t, 1, "", `pods "h" not found`)
}

func TestErrorsOneLineEach(t *testing.T) {
	f := startFake(t)
	r := f.run(t, "get", "pods", "a", "b")
	if r.code != 1 || r.err != "error: pods \"a\" not found\nerror: pods \"b\" not found\n" {
		t.Errorf("%+v", r)
	}
}

func TestFirst(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	own := errors.New("own")
	if err := first(ctx, own); !errors.Is(err, own) {
		t.Error(err)
	}
	cancel()
	if err := first(ctx, own); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := first(ctx, nil); err != nil {
		t.Error(err)
	}
}

func TestInfoAndVersion(t *testing.T) {
	f := startFake(t)
	golden(t, "info.txt", f.run(t, "info").out)
	golden(t, "info.json", f.run(t, "info", "-o", "json").out)
	f.run(t, "version").want(t, 0, "9.8.7", "")
	r := runLine(t, "", "version", "--client", "-o", "yaml")
	r.want(t, 0, "client: "+version, "")
	if strings.Contains(r.out, "daemon") {
		t.Error(r.out)
	}
}

func TestConfigCommand(t *testing.T) {
	file := write(t, "c.toml", "[log]\nlevel = \"debug\"\n")
	r := runLine(t, "", "config", "--config", file, "--socket", "/x.sock")
	r.want(t, 0, "debug", "")
	golden(t, "config.txt", strings.ReplaceAll(r.out, file, "FILE"))
	golden(t, "config-default.toml", runLine(t, "", "config", "--default").out)
	runLine(t, "", "config", "--config", file, "-o", "json").want(t, 0, `"source": "`+file+`:2"`, "")
	runLine(t, "", "config", "--config", write(t, "bad.toml", "stat = 1\n")).want(t, 1, "", "bad.toml:1: unknown setting stat: did you mean state?")
	runLine(t, "", "serve", "--config", "/no/such").want(t, 1, "", "error: read settings: open /no/such")
}

func TestCompletion(t *testing.T) {
	f := startFake(t)
	f.runWith(t, helloManifest, "apply", "-f", "-").want(t, 0, "created", "")
	for line, want := range map[string]string{
		"":                     "apply attach completion config delete describe doctor events exec firewall get graph help images info logs run serve trace version wait",
		"de":                   "delete describe",
		"images ":              "explain export gc import inspect list mount prune pull push rm tag unmount",
		"get p":                "pods",
		"get pods ":            "hello",
		"get deploy f":         "front",
		"logs ":                "hello",
		"exec -n ":             "",
		"get -o ":              "json name wide yaml",
		"get pods --show":      "--show-labels",
		"completion ":          "bash fish zsh",
		"run ":                 "localhost/busybox:latest",
		"apply -f ":            "",
		"exec hello -- ":       "",
		"get pods --no-head":   "--no-headers",
		"get --all-namespaces": "--all-namespaces",
	} {
		words := strings.Split(line, " ")
		r := f.run(t, append([]string{"__complete", "--"}, words...)...)
		if got := strings.Join(strings.Fields(r.out), " "); got != want || r.code != 0 {
			t.Errorf("%q completes to %q, want %q (%s)", line, got, want, r.err)
		}
	}
}

func TestCompletionScripts(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		r := runLine(t, "", "completion", shell)
		r.want(t, 0, "__complete", "")
		path, err := exec.LookPath(shell)
		if err != nil {
			t.Logf("%s is not on this host: its script is not run", shell)
			continue
		}
		if out, err := exec.Command(path, "-n", write(t, "script", r.out)).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", shell, err, out)
		}
	}
}

// TestBashCompletes runs the script in bash, with a stand-in for the program.
func TestBashCompletes(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("bash is not on this host")
	}
	script := runLine(t, "", "completion", "bash").out + `
pausa() { printf '%s\n' "[$*]" "two words"; }
COMP_WORDS=(pausa get po) COMP_CWORD=2
_pausa
printf '%s\n' "${COMPREPLY[@]}"
complete -p pausa
`
	out, err := exec.Command(bash, "-c", script).CombinedOutput()
	if want := "[__complete\n--\nget\npo]\ntwo words\ncomplete -F _pausa pausa\n"; err != nil || string(out) != want {
		t.Errorf("%v\n%s, want\n%s", err, out, want)
	}
}
