package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// parse splits the input into documents. JSON is read as JSON, so that escapes
// and tabs mean what they mean there; a text that begins like JSON and is not may
// still be YAML.
func (d *decoder) parse(data []byte) []*yaml.Node {
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		docs, err := parseJSON(data)
		if err == nil {
			return docs
		}
		if strings.HasSuffix(d.name, ".json") {
			d.errs = append(d.errs, d.jsonError(data, err))
			return docs
		}
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var docs []*yaml.Node
	for {
		var doc yaml.Node
		err := decodeYAML(dec, &doc)
		if errors.Is(err, io.EOF) {
			return docs
		}
		if err != nil {
			d.errs = append(d.errs, d.yamlError(err))
			return docs
		}
		if len(doc.Content) == 1 {
			docs = append(docs, doc.Content[0])
		}
	}
}

// decodeYAML turns a panic of the parser into an error: input is untrusted.
func decodeYAML(dec *yaml.Decoder, doc *yaml.Node) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("yaml: %v", r)
		}
	}()
	return dec.Decode(doc)
}

// yamlError moves the line of "yaml: line 3: …" to where our errors have it.
func (d *decoder) yamlError(err error) error {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 0
	if m := regexp.MustCompile(`^line (\d+): `).FindStringSubmatch(msg); m != nil {
		line, _ = strconv.Atoi(m[1])
		msg = strings.TrimPrefix(msg, m[0])
	}
	if strings.Contains(msg, "cannot start any token") && strings.Contains(msg, "character") {
		msg += " (YAML wants blanks for indentation, not tabs)"
	}
	return &Error{d.source(line), msg}
}

// syntaxError says at which byte JSON stopped making sense.
type syntaxError struct {
	offset int64
	err    error
}

func (e *syntaxError) Error() string { return e.err.Error() }

func (d *decoder) jsonError(data []byte, err error) error {
	line := 0
	var s *syntaxError
	if errors.As(err, &s) {
		line = 1 + bytes.Count(data[:min(int(s.offset), len(data))], []byte("\n"))
	}
	return &Error{d.source(line), err.Error()}
}

// jsonParser builds YAML nodes from JSON, so that both are walked by the same code.
type jsonParser struct {
	data []byte
	dec  *json.Decoder
	seen int64 // bytes whose newlines are counted
	line int
}

func parseJSON(data []byte) ([]*yaml.Node, error) {
	p := &jsonParser{data: data, dec: json.NewDecoder(bytes.NewReader(data)), line: 1}
	p.dec.UseNumber()
	var docs []*yaml.Node
	for {
		n, err := p.node(0)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return docs, &syntaxError{p.dec.InputOffset(), err}
		}
		docs = append(docs, n)
	}
}

// node reads one value. io.EOF means that there is none.
func (p *jsonParser) node(depth int) (*yaml.Node, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("nested deeper than %d levels", maxDepth)
	}
	tok, err := p.dec.Token()
	if err != nil {
		return nil, err
	}
	n := &yaml.Node{Kind: yaml.ScalarNode, Line: p.lineNow()}
	switch v := tok.(type) {
	case json.Delim:
		return n, p.nested(n, v, depth)
	case string:
		n.Tag, n.Value = "!!str", v
	case json.Number:
		n.Tag, n.Value = "!!int", v.String()
		if strings.ContainsAny(n.Value, ".eE") {
			n.Tag = "!!float"
		}
	case bool:
		n.Tag, n.Value = "!!bool", strconv.FormatBool(v)
	case nil:
		n.Tag, n.Value = "!!null", "null"
	}
	return n, nil
}

func (p *jsonParser) nested(n *yaml.Node, open json.Delim, depth int) error {
	n.Kind, n.Tag = yaml.MappingNode, "!!map"
	if open == '[' {
		n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
	}
	for p.dec.More() {
		c, err := p.node(depth + 1)
		if err != nil {
			return unexpectedEnd(err)
		}
		n.Content = append(n.Content, c)
	}
	_, err := p.dec.Token() // the closing one
	return unexpectedEnd(err)
}

// lineNow is the line of the token just read.
func (p *jsonParser) lineNow() int {
	end := p.dec.InputOffset()
	p.line += bytes.Count(p.data[p.seen:end], []byte("\n"))
	p.seen = end
	return p.line
}

func unexpectedEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
