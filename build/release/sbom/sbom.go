// Package sbom owns the form of a bill of materials: an SPDX 2.3 document of one thing that is released and what it
// is made of. The same input gives the same bytes.
package sbom

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"
	"time"

	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx"
	"github.com/spdx/tools-golang/spdx/v2/common"
)

// What SPDX says where nothing is said.
const noAssertion = "NOASSERTION"

// namespace is the beginning of what a document is called; the standard asks for a URI that is unique, not for a page.
const namespace = "https://understudy.mesh/spdx/"

// Subject is what a document is about.
type Subject struct {
	// Name is such as proxy-linux-amd64.
	Name, Version string
	// Created is when: that of the commit, so that the same commit gives the same document.
	Created time.Time
	// Purpose is SPDX's word: CONTAINER or APPLICATION.
	Purpose string
	// License is an SPDX expression; empty: not said.
	License string
	// SHA256 is in hexadecimal digits: of the file, or of an image's manifest, which is its digest. Empty: there is none.
	SHA256 string
	// PURL is its package URL; empty: none.
	PURL string
}

// Component is something that is in the subject.
type Component struct {
	// Kind is go, deb or file: a part of its identifier, so that what has one name is told apart.
	Kind          string
	Name, Version string
	// PURL and CPE are by what scanners of vulnerabilities know it; empty: unknown.
	PURL, CPE string
	// License is an SPDX expression; empty: not said.
	License string
	// SHA256 is in hexadecimal digits, of what was downloaded; empty: unknown.
	SHA256 string
	// Comment says what the other fields cannot.
	Comment string
	// Of names the component that this one is linked into, by its Name; empty: it is in the subject itself.
	Of []string
}

// SumSHA256 is the hash in a sum of go.sum, in hexadecimal digits.
func SumSHA256(sum string) (string, error) {
	encoded, isH1 := strings.CutPrefix(sum, "h1:")
	hash, err := base64.StdEncoding.DecodeString(encoded)
	if !isH1 || err != nil || len(hash) != 32 {
		return "", fmt.Errorf("sum %q: want h1: and 32 bytes in base64", sum)
	}
	return hex.EncodeToString(hash), nil
}

// Write is the document, as JSON.
func Write(s Subject, components []Component) ([]byte, error) {
	root := id("subject", s.Name, "")
	doc := &spdx.Document{
		SPDXVersion: spdx.Version, DataLicense: spdx.DataLicense, SPDXIdentifier: "DOCUMENT",
		DocumentName: s.Name + "-" + s.Version,
		CreationInfo: &spdx.CreationInfo{
			Created:  s.Created.UTC().Format(time.RFC3339),
			Creators: []common.Creator{{CreatorType: "Organization", Creator: "Understudy"}, {CreatorType: "Tool", Creator: "understudy.mesh/build/release-" + s.Version}},
		},
		Packages:      []*spdx.Package{s.pack(root)},
		Relationships: []*spdx.Relationship{relation("DOCUMENT", common.TypeRelationshipDescribe, root)},
	}
	ids := map[common.ElementID]bool{root: true}
	byName := map[string]common.ElementID{}
	for _, c := range components {
		own := id(c.Kind, c.Name, c.Version)
		if ids[own] {
			return nil, fmt.Errorf("bill of materials of %s: %s %s is in it twice", s.Name, c.Name, c.Version)
		}
		ids[own], byName[c.Name] = true, own
		doc.Packages = append(doc.Packages, c.pack(own))
		if len(c.Of) == 0 {
			doc.Relationships = append(doc.Relationships, relation(root, common.TypeRelationshipContains, own))
		}
		for _, name := range c.Of {
			if byName[name] == "" {
				return nil, fmt.Errorf("bill of materials of %s: %s is of %s, which is not there before it", s.Name, c.Name, name)
			}
			doc.Relationships = append(doc.Relationships, relation(byName[name], common.TypeRelationshipDependsOn, own))
		}
	}
	doc.DocumentNamespace = namespace + s.Version + "/" + s.Name + "-" + s.SHA256[:min(len(s.SHA256), 16)]
	var b bytes.Buffer
	if err := spdxjson.Write(doc, &b, spdxjson.Indent("  ")); err != nil {
		return nil, fmt.Errorf("bill of materials of %s: %w", s.Name, err)
	}
	return b.Bytes(), nil
}

func (s Subject) pack(own common.ElementID) *spdx.Package {
	p := Component{Name: s.Name, Version: s.Version, PURL: s.PURL, License: s.License, SHA256: s.SHA256}.pack(own)
	p.PrimaryPackagePurpose = s.Purpose
	return p
}

func (c Component) pack(own common.ElementID) *spdx.Package {
	license := c.License
	if license == "" {
		license = noAssertion
	}
	p := &spdx.Package{
		PackageName: c.Name, PackageSPDXIdentifier: own, PackageVersion: c.Version,
		PackageDownloadLocation: noAssertion, IsFilesAnalyzedTagPresent: true,
		PackageLicenseConcluded: noAssertion, PackageLicenseDeclared: license, PackageCopyrightText: noAssertion,
		PackageComment: c.Comment,
	}
	if c.SHA256 != "" {
		p.PackageChecksums = []common.Checksum{{Algorithm: common.SHA256, Value: c.SHA256}}
	}
	if c.CPE != "" {
		p.PackageExternalReferences = append(p.PackageExternalReferences, &spdx.PackageExternalReference{Category: common.CategorySecurity, RefType: common.TypeSecurityCPE23Type, Locator: c.CPE})
	}
	if c.PURL != "" {
		p.PackageExternalReferences = append(p.PackageExternalReferences, &spdx.PackageExternalReference{Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL, Locator: c.PURL})
	}
	return p
}

func relation(a common.ElementID, kind string, b common.ElementID) *spdx.Relationship {
	return &spdx.Relationship{RefA: common.DocElementID{ElementRefID: a}, RefB: common.DocElementID{ElementRefID: b}, Relationship: kind}
}

// notInID is what an identifier of SPDX may not have.
var notInID = regexp.MustCompile(`[^A-Za-z0-9.-]+`)

func id(kind, name, version string) common.ElementID {
	return common.ElementID(strings.Trim(notInID.ReplaceAllString(kind+"-"+name+"-"+version, "-"), "-"))
}
