package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/pausa-run/pausa/cri/pausav1"
)

// chunkSize of an archive on its way to the daemon.
const chunkSize = 512 << 10

func (p *program) imagesImportCommand() *cli.Command {
	return &cli.Command{
		Name:      "import",
		Aliases:   []string{"load"},
		Usage:     "Take images from an archive",
		ArgsUsage: "FILE|-|DIR",
		Description: "FILE is an OCI archive or one of docker save, compressed or not; DIR is an OCI\n" +
			"layout. Prints the names of the images.\n\n" +
			"Examples:\n" +
			"  pausa images import busybox.tar\n" +
			"  pausa images import --name localhost/web:dev ./layout\n" +
			"  docker save web:dev | pausa images import -",
		Flags:  []cli.Flag{&cli.StringFlag{Name: "name", Usage: "`NAME` for an archive that holds none"}},
		Action: p.imagesImport,
	}
}

func (p *program) imagesImport(ctx *cli.Context) error {
	if ctx.NArg() != 1 {
		return badUsage(ctx, "name one archive: a file, a folder with an OCI layout, or - for standard input")
	}
	name := ctx.Args().First()
	archive, err := p.openArchive(name)
	if err != nil {
		return err
	}
	defer func() { _ = archive.Close() }() // only read
	c, err := dial(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	answer, err := sendPath(ctx, c, archive)
	if errors.Is(err, errNoFile) || hasCode(err, codes.FailedPrecondition) {
		answer, err = sendBytes(ctx, c, archive)
	}
	if err != nil {
		return first(ctx.Context, fmt.Errorf("import %s: %w", name, err))
	}
	for _, image := range answer.GetNames() {
		fmt.Fprintln(p.out, image)
	}
	if len(answer.GetNames()) == 0 {
		for _, id := range answer.GetIds() {
			fmt.Fprintln(p.out, id)
		}
	}
	return nil
}

// errNoFile: only the bytes of an archive can be sent.
var errNoFile = errors.New("the archive is no file")

// sendPath lets the daemon read the archive itself; the error has the code
// FailedPrecondition when it cannot.
func sendPath(ctx *cli.Context, c *client, archive io.Reader) (*pausav1.ImportImageResponse, error) {
	local := localFile(archive)
	if local == nil {
		return nil, errNoFile
	}
	stream, err := c.ImportImage(ctx.Context)
	if err != nil {
		return nil, plain(err)
	}
	if err := stream.Send(&pausav1.ImportImageRequest{Name: ctx.String("name"), File: local}); err != nil && !errors.Is(err, io.EOF) {
		return nil, plain(err)
	}
	answer, err := stream.CloseAndRecv()
	return answer, plain(err)
}

// localFile describes the archive if it is a regular file.
func localFile(archive io.Reader) *pausav1.LocalFile {
	f, ok := archive.(*os.File)
	if !ok {
		return nil
	}
	path, err := filepath.Abs(f.Name())
	if err != nil {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	return &pausav1.LocalFile{Path: path, Device: st.Dev, Inode: st.Ino}
}

func sendBytes(ctx *cli.Context, c *client, archive io.Reader) (*pausav1.ImportImageResponse, error) {
	stream, err := c.ImportImage(ctx.Context)
	if err != nil {
		return nil, plain(err)
	}
	return sendArchive(stream, ctx.String("name"), archive)
}

// importStream is the client's side of ImportImage.
type importStream interface {
	Send(*pausav1.ImportImageRequest) error
	CloseAndRecv() (*pausav1.ImportImageResponse, error)
}

func sendArchive(stream importStream, name string, archive io.Reader) (*pausav1.ImportImageResponse, error) {
	buf := make([]byte, chunkSize)
	for {
		n, err := io.ReadFull(archive, buf)
		end := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !end {
			return nil, err
		}
		sent := stream.Send(&pausav1.ImportImageRequest{Name: name, Data: buf[:n]})
		if sent != nil && !errors.Is(sent, io.EOF) {
			return nil, plain(sent)
		}
		if end || sent != nil { // the daemon ended the stream: its answer says why
			answer, err := stream.CloseAndRecv()
			return answer, plain(err)
		}
		name = ""
	}
}

func (p *program) openArchive(name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(p.in), nil
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("import image: %w", err)
	}
	if !info.IsDir() {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("import image: %w", err)
		}
		return f, nil
	}
	if _, err := os.Stat(filepath.Join(name, "oci-layout")); err != nil {
		return nil, fmt.Errorf("import image: %s is no OCI layout: it holds no file oci-layout", name)
	}
	r, w := io.Pipe()
	go func() {
		t := tar.NewWriter(w)
		w.CloseWithError(errors.Join(t.AddFS(os.DirFS(name)), t.Close()))
	}()
	return r, nil
}
